"""The only thing the engine knows about where it runs: a place to report to and to resume from.

Two backends: `LocalReporter` in this process (or in a Tune trial's), and a Ray Train worker in `scaling/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

Metrics = Mapping[str, float | int | str | bool]


class Reporter(ABC):
    """What a run tells the outside, and what the outside tells the run."""

    rank: int = 0
    world: int = 1

    @abstractmethod
    def report(self, metrics: Metrics, checkpoint: Path | None = None) -> None:
        """Hand over metrics and, if there is one, a checkpoint folder written by this rank.

        Every rank calls it equally often. A report may be repeated after a fault: `epoch` is in `metrics`,
        so whoever writes them down can do so idempotently.
        """

    @abstractmethod
    def latest(self) -> Path | None:
        """The folder of the last good checkpoint with the files of all ranks, or None at a fresh start."""

    @property
    @abstractmethod
    def last(self) -> str | None:
        """The path or URI of the last good checkpoint, for people."""

    @abstractmethod
    def new_folder(self) -> Path:
        """An empty folder to write the next checkpoint of this rank into."""

    def should_stop(self) -> bool:
        """True when the user asked the run to stop; it then checkpoints and raises `Stopped`."""
        return False

    def image(self, name: str, epoch: int, png: bytes) -> None:  # noqa: B027
        """An image to keep beside the metrics of an epoch, as a PNG file; from rank 0."""

    def progress(self, metrics: Metrics) -> None:  # noqa: B027 - most places have no terminal
        """Metrics for a progress bar, a few times a second at most; may be dropped."""
