"""The reporter of a run in one process: checkpoints in a folder, metrics to a listener."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raytrain_speedup.engine.checkpoint import CheckpointFailed
from raytrain_speedup.engine.reporter import Metrics, Reporter
from raytrain_speedup.settings import RunFailed

Listener = Callable[[str, Mapping[str, Any]], None]
"""Called with ("report" or "progress", metrics), or ("image", {"name": ..., "png": ...})."""

KEPT = 2
"""Checkpoints kept: the last, and the one before in case the last turns out bad."""

PROGRESS_SECONDS = 0.2


class LocalReporter(Reporter):
    """Keeps the last checkpoints of one run in `folder`.

    Args:
        folder: the run's folder; it is made if it is not there.
        listener: gets every report and now and then the progress.
    """

    def __init__(self, folder: Path, listener: Listener | None = None) -> None:
        self.folder = folder
        self.stop_requested = False
        self._listener = listener
        self._last_progress = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def report(self, metrics: Metrics, checkpoint: Path | None = None) -> None:
        if checkpoint is not None:
            self._commit(checkpoint)
        if self._listener is not None:
            self._listener("report", metrics)

    def image(self, name: str, epoch: int, png: bytes) -> None:
        file = self.folder / "images" / f"{name}-{epoch:04d}.png"
        try:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png)
        except OSError as error:
            raise RunFailed(f"{file}: image not written ({error.strerror})") from error
        if self._listener is not None:
            self._listener("image", {"name": file.name, "png": png})

    def progress(self, metrics: Metrics) -> None:
        now = time.monotonic()
        if self._listener is not None and now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._listener("progress", metrics)

    def should_stop(self) -> bool:
        return self.stop_requested

    def latest(self) -> Path | None:
        return max(self._checkpoints(), default=None)

    def new_folder(self) -> Path:
        """A folder that becomes a checkpoint only when it is reported, by one rename."""
        partial = self.folder / "checkpoint.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
        except OSError as error:
            raise CheckpointFailed(f"{partial}: checkpoint not written ({error.strerror})") from error
        return partial

    def _commit(self, partial: Path) -> None:
        checkpoints = sorted(self._checkpoints())
        number = int(checkpoints[-1].name.rpartition("-")[2]) + 1 if checkpoints else 0
        partial.replace(self.folder / f"checkpoint-{number:06d}")
        for old in checkpoints[: len(checkpoints) + 1 - KEPT]:
            shutil.rmtree(old)

    def _checkpoints(self) -> list[Path]:
        return list(self.folder.glob("checkpoint-[0-9]*"))


@contextmanager
def stop_at_interrupt(reporter: LocalReporter) -> Iterator[None]:
    """The first Ctrl-C asks the run to checkpoint and stop; the second one interrupts it at once."""

    def ask(signum: int, frame: object) -> None:
        if reporter.stop_requested:
            raise KeyboardInterrupt
        reporter.stop_requested = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
