"""What the platform needs of a place where runs are kept, and nothing of which place that is.

A run belongs to an experiment, which is a name, and may have a parent: the run that holds its sweep. It has tags
(text), params (what its settings were), metrics (numbers, of an epoch or final) and files. Metrics of epochs are
named `epoch/...`; all others are final. Beside the runs stand schedules: names with numbered versions, and
aliases that point at one.

`tests/tracking/test_every_tracker.py` says what each operation has to do, and runs for every tracker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raytrain_speedup.settings import RunFailed

State = Literal["running", "finished", "stopped", "failed", "interrupted"]
OURS = "speedup."
"""How the keys of our tags begin, and of all tags in an `Entry`."""

EPOCH = "epoch/"
"""How the names of an epoch's metrics begin."""

SCHEDULE_FILE = "schedule/schedule.yaml"
"""The file of a run that a version of a schedule is."""


class TrackingLost(RunFailed):
    """The tracking server, database or disk did not come back in time."""


class NotTracked(LookupError):
    """There is no such run, file, version or alias."""


@dataclass(frozen=True)
class Entry:
    """A run as it is kept: its tags that are `OURS`, and its final metrics. `started` is in milliseconds since
    1970."""

    run_id: str
    name: str
    experiment: str
    started: int
    parent: str | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Version:
    """A version of a schedule: the file `SCHEDULE_FILE` of a run."""

    name: str
    version: int
    run_id: str
    created: int
    aliases: tuple[str, ...] = ()


class Tracker(ABC):
    """Runs and schedules at a URI. A tracker opens what is there when it is made, or makes it.

    Attributes:
        uri: absolute; another process that opens it finds the same runs.

    Raises:
        TrackingLost: by any operation, when nothing has answered for a while.
    """

    uri: str

    @property
    def lost(self) -> TrackingLost | None:
        """Why an operation was given up; later ones are tried once."""
        return None

    def impatient(self) -> Tracker:
        """The same runs, by operations that are tried once and raise what they like: for what is done again
        soon, such as a heartbeat."""
        return self

    @abstractmethod
    def how_to_look(self, run_id: str) -> str:
        """What to type, or to open, to see a run and those in it."""

    # --- runs ---

    @abstractmethod
    def start(self, experiment: str, name: str, tags: Mapping[str, str], *, parent: str | None = None) -> str:
        """Begin a run; gives its id, which begins with eight characters that hardly any other has. An experiment
        that is not there is made."""

    @abstractmethod
    def reopen(self, run_id: str) -> None:
        """Go on with a run that has ended."""

    @abstractmethod
    def end(self, run_id: str, state: State) -> None:
        """End a run."""

    @abstractmethod
    def delete(self, run_id: str) -> None:
        """Take a run back."""

    @abstractmethod
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, or set them to another value."""

    @abstractmethod
    def remove_tag(self, run_id: str, key: str) -> None:
        """Remove a tag that is there."""

    @abstractmethod
    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Write down settings by their dotted keys."""

    @abstractmethod
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write down numbers, NaN among them; of a name, the value of the highest step counts."""

    @abstractmethod
    def log_dataset(self, run_id: str, name: str, digest: str, source: Mapping[str, str]) -> None:
        """Say what a run was trained on: a fingerprint, and the settings that led to it."""

    @abstractmethod
    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Keep a text as a file of the run."""

    @abstractmethod
    def log_file(self, run_id: str, file: Path, folder: str = "") -> None:
        """Keep a copy of a file with the run."""

    @abstractmethod
    def describe(self, run_id: str, markdown: str) -> None:
        """A page about a run, where people look at it first, in Markdown."""

    @abstractmethod
    def file_link(self, run_id: str, path: str) -> str:
        """How a page of `describe` refers to a file of a run."""

    @abstractmethod
    def experiments(self) -> list[str]:
        """The experiments that there are."""

    @abstractmethod
    def run(self, run_id: str) -> Entry:
        """One run, by its whole id.

        Raises:
            NotTracked: if there is none, or it was deleted.
        """

    @abstractmethod
    def runs(
        self,
        experiment: str | None = None,
        *,
        tag: str,
        value: str | None = None,
        parent: str | None = None,
        wanted: Collection[str] | None = None,
    ) -> list[Entry]:
        """The runs that have a tag, oldest first.

        Args:
            experiment: the one they belong to; any where None.
            tag: its key.
            value: what it has to be; anything where None.
            parent: the run that holds them; any, or none, where None.
            wanted: final metrics that are enough, beside the one that ranks a run; a tracker may give all.
        """

    @abstractmethod
    def curve(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """The steps and values of a metric, in the order of the steps."""

    @abstractmethod
    def read_text(self, run_id: str, path: str) -> str:
        """A file of the run.

        Raises:
            NotTracked: if there is none, or it cannot be read.
        """

    # --- schedules ---

    @abstractmethod
    def publish(self, name: str, run_id: str) -> Version:
        """Make the `SCHEDULE_FILE` of a run the newest version of a schedule."""

    @abstractmethod
    def versions(self, name: str | None = None) -> list[Version]:
        """The versions of a schedule, or of all, by name and number."""

    @abstractmethod
    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Let an alias point at a version, and at no other.

        Raises:
            NotTracked: if there is no such version.
        """

    def version(self, name: str, which: str) -> Version:
        """A version by its number, by `@alias`, or the newest by `latest`.

        Raises:
            NotTracked: naming those there are.
        """
        known = self.versions(name)
        if which == "latest" and known:
            return known[-1]
        for version in known:
            if str(version.version) == which or which.removeprefix("@") in version.aliases:
                return version
        have = [f"{one.version}{''.join(f' @{alias}' for alias in one.aliases)}" for one in known]
        names = sorted({one.name for one in self.versions()})
        expected = ", ".join(have) if have else f"one of: {', '.join(names) or 'none yet'}"
        what = f"version {which!r}" if have else "schedule of this name"
        raise NotTracked(f"{name}: no {what} at {self.uri}; expected {expected}")


def split_name(name: str) -> tuple[str, str]:
    """`NAME@ALIAS`, `NAME/VERSION` or `NAME` as the name and what `Tracker.version` takes."""
    before, found, after = name.rpartition("@")
    if found:
        return before, f"@{after}"
    before, found, after = name.rpartition("/")
    return (before, after) if found and after.isdecimal() else (name, "latest")
