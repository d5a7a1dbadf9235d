"""The only thing the engine knows about where it runs: a place to report to and to resume from.

Two backends: `LocalReporter` in this process (or in a Tune trial's), and a Ray Train worker in `scaling/`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint

Metrics = Mapping[str, float | int | str | bool]
Decision = TypeVar("Decision")


@dataclass(frozen=True)
class Notice:
    """That nodes which a run uses are soon taken away.

    Attributes:
        nodes: their names.
        deadline: when, in seconds since 1970; None if that is not known.
    """

    nodes: tuple[str, ...]
    deadline: float | None = None

    def __str__(self) -> str:
        several = len(self.nodes) > 1
        said = f"{'nodes' if several else 'node'} {', '.join(self.nodes)} {'are' if several else 'is'} taken back"
        if self.deadline is None:
            return f"{said} by the cloud"
        return f"{said} by the cloud (notice of {max(self.deadline - time.time(), 0):.0f} s)"


class Reporter(ABC):
    """What a run tells the outside, and what the outside tells the run."""

    rank: int = 0
    world: int = 1
    watches: bool = False
    """Whether `notice` may ever have something to say; where not, nobody asks."""

    @abstractmethod
    def report(self, metrics: Metrics, checkpoint: Checkpoint | None = None) -> None:
        """Hand over metrics and, if there is one, this rank's part of a checkpoint, which is written while the
        training goes on.

        Every rank calls it equally often. A report may be repeated after a fault: `epoch` is in `metrics`,
        so whoever writes them down can do so idempotently.
        """

    def settle(self) -> None:  # noqa: B027 - where nothing is kept, nothing is waited for
        """Wait until the last checkpoint is there, for all ranks; all call it equally often.

        Raises:
            CheckpointFailed: if it could not be written.
        """

    @abstractmethod
    def has_checkpoint(self) -> bool:
        """Whether there is a good checkpoint, the same on every rank; nothing of it is fetched."""

    @abstractmethod
    def fetched(self) -> AbstractContextManager[Path | None]:
        """A folder with the last good checkpoint, as far as this rank needs it, or None at a fresh start. It may be
        a copy, which is removed at the end of the context.

        Raises:
            CheckpointFailed: if it cannot be brought here.
        """

    @property
    @abstractmethod
    def last(self) -> str | None:
        """The path or URI of the last good checkpoint, for people."""

    @abstractmethod
    def new_folder(self) -> Path:
        """An empty folder to write the next checkpoint of this rank into; waits for the one before.

        Raises:
            CheckpointFailed: of the one before.
        """

    def should_stop(self) -> bool:
        """True when the user asked the run to stop; it then checkpoints and raises `Stopped`."""
        return False

    def agree(self, decision: Decision) -> Decision:
        """What rank 0 decided, on every rank; all call it equally often."""
        return decision

    def notice(self) -> Notice | None:
        """That nodes of this run are soon taken away, the same on every rank; all call it equally often."""
        return None

    def leave(self, notice: Notice) -> None:  # noqa: B027 - most places train on until they are gone
        """Called on every rank when the checkpoint that a notice asked for is there. May raise: go on elsewhere."""

    def image(self, name: str, epoch: int, png: bytes) -> None:  # noqa: B027
        """An image to keep beside the metrics of an epoch, as a PNG file; from rank 0."""

    def close(self) -> None:  # noqa: B027 - as `settle`
        """Wait until nothing is being written any more, whatever became of it, and remove what was begun and not
        reported: a run ends with it, and goes on after it where it likes."""

    def phase(self, name: str) -> None:  # noqa: B027
        """What the run is at from here on, until its next step or the next phase: a few words, for people."""

    def progress(self, metrics: Metrics) -> None:  # noqa: B027 - most places have no terminal
        """Metrics for a progress bar, a few times a second at most; may be dropped."""


class KeepsNothing(Reporter):
    """Of a training that is never gone on with."""

    def has_checkpoint(self) -> bool:
        return False

    def fetched(self) -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def last(self) -> str | None:
        return None

    def new_folder(self) -> Path:
        raise AssertionError(f"{type(self).__name__} keeps no checkpoints")
