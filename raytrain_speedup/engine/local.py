"""The reporter of a run in one process: checkpoints in a folder, metrics to a listener."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint
from raytrain_speedup.engine.checkpoints.saver import Saver
from raytrain_speedup.engine.checkpoints.store import FolderStore
from raytrain_speedup.engine.reporter import Metrics, Reporter
from raytrain_speedup.settings import RunFailed

Listener = Callable[[str, Mapping[str, Any]], None]
"""Called with ("report" or "progress", metrics), with ("phase", {"name": ...}), what the run is at, or with
("image", {"name": ..., "png": ...})."""

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
        self._store = FolderStore(folder)
        self._store.create()
        self._store.clear()
        self._number = self._store.next_number()
        self._last: str | None = None
        self._saver = Saver()

    def report(self, metrics: Metrics, checkpoint: Checkpoint | None = None) -> None:
        # The listener first: a process that is killed in between shows the epoch again, and whoever writes it down
        # does so once. The other way round nobody would hear of an epoch that is not run again.
        try:
            if self._listener is not None:
                self._listener("report", metrics)
        finally:  # a listener that fails costs no checkpoint
            if checkpoint is not None:
                self._saver.start(functools.partial(self._save, checkpoint, self._number))
                self._number += 1

    def _save(self, checkpoint: Checkpoint, number: int) -> None:
        checkpoint.write()
        self._store.hand_over(checkpoint.folder, number)
        self._last = self._store.path_of(self._store.commit(number, self.world))

    def settle(self) -> None:
        self._saver.settle()

    def close(self) -> None:
        self._saver.wait()
        self._store.close()

    def image(self, name: str, epoch: int, png: bytes) -> None:
        file = self.folder / "images" / f"{name}-{epoch:04d}.png"
        try:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png)
        except OSError as error:
            raise RunFailed(f"{file}: image not written ({error.strerror})") from error
        if self._listener is not None:
            self._listener("image", {"name": file.name, "png": png})

    def phase(self, name: str) -> None:
        if self._listener is not None:
            self._listener("phase", {"name": name})

    def progress(self, metrics: Metrics) -> None:
        self._saver.check()
        now = time.monotonic()
        if self._listener is not None and now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._listener("progress", metrics)

    def should_stop(self) -> bool:
        return self.stop_requested

    def has_checkpoint(self) -> bool:
        return self._newest() is not None

    @contextmanager
    def fetched(self) -> Iterator[Path | None]:
        name = self._newest()
        with nullcontext() if name is None else self._store.fetched(name, self.rank) as folder:
            yield folder

    def latest(self) -> Path | None:
        """The last good checkpoint where it is and stays, or None at a fresh start."""
        name = self._newest()
        return self.folder / name if name is not None else None

    def _newest(self) -> str | None:
        self._saver.wait()
        name = self._store.newest()
        if name is not None:
            self._last = self._store.path_of(name)
        return name

    @property
    def last(self) -> str | None:
        self._saver.wait()
        return self._last

    def new_folder(self) -> Path:
        self._saver.settle()
        return self._store.begin(self._number)


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
