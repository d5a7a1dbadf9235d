"""Where a run's checkpoints are: one layout for a process and for any number of workers.

    runs/digits-1a2b/
        checkpoint-000004/          whole
            run.pt                  what all ranks share (rank 0 writes it)
            rank-0.pt, rank-1.pt    what each rank alone knows
            manifest.json           the number of workers and the size of every file; written last
        .checkpoint-000005.partial/ being written; it gets its name when every rank is done

So a run begun by one process goes on with two workers, and the other way round. Folders without a manifest, or
with a file of another size (a disk that was cut off, a copy that broke off), are left out: the newest whole one
counts, and the log says which was not. Behind a URI there is no renaming, and the manifest alone makes a folder
a checkpoint (`scaling/uri_store.py`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import re
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from raytrain_speedup.engine.checkpoints.checkpoint import (
    CheckpointFailed,
    is_rank_file,
    rank_file,
    save_json,
)
from raytrain_speedup.engine.checkpoints.outage import outlast, reason_of
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.storage")

KEPT = 2
"""Checkpoints kept: the last, and the one before in case the last turns out bad."""

PARTS_SECONDS = 1800.0
"""For what rank 0 waits for the files of the others; a worker that failed ends the group sooner."""

MANIFEST = "manifest.json"
NAME = r"checkpoint-\d{6,}"


class CheckpointStore(ABC):
    """The checkpoints of one run.

    Args:
        location: the run's folder, a path or a URI.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self._told: set[str] = set()

    # --- what a reporter calls -------------------------------------------------------------------------

    @abstractmethod
    def create(self) -> None:
        """Make the run's folder, in the process that starts the run.

        Raises:
            UserError: if nothing can be written there.
        """

    @abstractmethod
    def clear(self) -> None:
        """Remove what was left half-written; called by one process while nobody writes."""

    @abstractmethod
    def begin(self, number: int) -> Path:
        """A folder for this rank's files of the checkpoint `number`; ranks may share it.

        Raises:
            CheckpointFailed: if it cannot be made.
        """

    @abstractmethod
    def hand_over(self, folder: Path, number: int) -> None:
        """Bring this rank's files from `folder` of `begin` to where rank 0 sees them, its `rank-R.pt` last."""

    @abstractmethod
    def fetched(self, name: str, rank: int) -> AbstractContextManager[Path]:
        """A folder of this machine with what `rank` needs of a checkpoint. A copy is removed at the end of the
        context, whatever became of it.

        Raises:
            CheckpointFailed: if it cannot be brought here.
        """

    def close(self) -> None:  # noqa: B027 - most write where the checkpoint stays
        """Remove what this process has begun and not handed over; called while it writes nothing."""

    @abstractmethod
    def path_of(self, name: str) -> str:
        """Path or URI of a checkpoint, for people."""

    def newest(self) -> str | None:
        """The name of the newest whole checkpoint; what is wrong with later ones is logged, once.

        Raises:
            UserError: if the run's folder is not there, or if there are checkpoints and none is whole: to begin
                afresh then would be a surprise.
        """
        try:
            names = outlast(self._names, self.location)
        except OSError as error:
            raise self._unreadable(error) from error
        problems: list[str] = []
        for name in sorted(names, reverse=True):
            try:
                problem = outlast(functools.partial(self._problem, name), self.path_of(name))
            except OSError as error:
                raise self._unreadable(error) from error
            if problem is None:
                self._tell(problems, name)
                return name
            problems.append(f"{name}: {problem}")
        if problems:
            raise UserError(
                f"{self.location}: not one whole checkpoint ({'; '.join(problems)}); expected one"
            )
        return None

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.location}: cannot be read ({reason_of(error)}); expected a folder or URI that all workers "
            "see (scaling.storage)"
        )

    def _tell(self, problems: Sequence[str], name: str) -> None:
        """Say once which later checkpoints are left out."""
        for problem in problems:
            if problem not in self._told:
                self._told.add(problem)
                log.warning("%s: not a whole checkpoint, %s; taking %s", self.location, problem, name)

    def next_number(self) -> int:
        """One above all that are there, whole or not."""
        return max((int(name.rpartition("-")[2]) for name in self._names()), default=-1) + 1

    def commit(self, number: int, world: int) -> str:
        """Make a checkpoint of what all ranks hand over, as soon as they have, and remove old ones; gives its name.

        Raises:
            CheckpointFailed: naming it, and the file that did not come.
        """
        name = checkpoint_name(number)
        try:
            self._await_parts(number, world)
            outlast(lambda: self._publish(number), self.path_of(name))
        except OSError as error:
            raise CheckpointFailed(
                f"{self.path_of(name)}: checkpoint not written ({reason_of(error)})"
            ) from error
        with contextlib.suppress(OSError):  # one too many is no harm; the next commit tries again
            self._remove_old(name)
        return name

    def _await_parts(self, number: int, world: int) -> None:
        """Each file is whole once it can be seen, and a rank's own is its last. The ranks do not meet for this:
        they are at their next steps."""
        deadline, pause = time.monotonic() + PARTS_SECONDS, 0.01
        wanted = {rank_file(rank) for rank in range(world)}
        while missing := wanted - outlast(lambda: self._parts(number), self.location).keys():
            if time.monotonic() > deadline:
                raise FileNotFoundError(errno.ENOENT, f"{min(missing)} did not come in {PARTS_SECONDS:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _remove_old(self, last: str) -> None:
        """All but the newest whole ones; `last` was just made, whatever a storage shows of it."""
        names = sorted(self._names())
        whole = [name for name in names if name == last or self._problem(name) is None]
        for old in set(names) - set(whole[-KEPT:]):
            self._remove(old)

    # --- what a kind of storage knows ------------------------------------------------------------------

    @abstractmethod
    def _names(self) -> list[str]:
        """Of all checkpoints, whole or not."""

    @abstractmethod
    def _read_manifest(self, name: str) -> bytes:
        """Raises `FileNotFoundError` where there is none, and another `OSError` where the storage is away."""

    @abstractmethod
    def _sizes(self, name: str) -> Mapping[str, int]:
        """The sizes that files have."""

    @abstractmethod
    def _parts(self, number: int) -> Mapping[str, int]:
        """The sizes of the files that were handed over."""

    @abstractmethod
    def _publish(self, number: int) -> None:
        """Write the manifest and give the checkpoint its name; may be repeated."""

    @abstractmethod
    def _remove(self, name: str) -> None: ...

    def _problem(self, name: str) -> str | None:
        """What a checkpoint lacks to be whole."""
        try:
            wanted = json.loads(self._read_manifest(name))["files"]
        except FileNotFoundError:
            return f"no {MANIFEST}"
        except (ValueError, KeyError):
            return f"{MANIFEST} is cut off"
        found = self._sizes(name)
        cut = [file for file, size in wanted.items() if found.get(file) != size]
        return f"{cut[0]} has {found.get(cut[0], 0)} of {wanted[cut[0]]} bytes" if cut else None


class FolderStore(CheckpointStore):
    """Checkpoints in a folder that all workers see: ranks write in one partial folder, and rank 0 renames it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def create(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):  # of its own: several ranks try at once
                pass
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); expected a folder for checkpoints "
                "(scaling.storage)"
            ) from error

    def clear(self) -> None:
        for partial in self.folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def begin(self, number: int) -> Path:
        partial = self._partial(number)
        try:
            # not with its parents: where a file system is away, they would be made on the disk below it
            outlast(lambda: partial.mkdir(exist_ok=True), self.location)
        except OSError as error:
            raise CheckpointFailed(f"{partial}: checkpoint not written ({reason_of(error)})") from error
        return partial

    def hand_over(self, folder: Path, number: int) -> None:
        """It is there already."""

    @contextlib.contextmanager
    def fetched(self, name: str, rank: int) -> Iterator[Path]:
        yield self.folder / name

    def path_of(self, name: str) -> str:
        return str(self.folder / name)

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if re.fullmatch(NAME, path.name)]

    def _read_manifest(self, name: str) -> bytes:
        return (self.folder / name / MANIFEST).read_bytes()

    def _sizes(self, name: str) -> Mapping[str, int]:
        return {path.name: path.stat().st_size for path in (self.folder / name).iterdir()}

    def _parts(self, number: int) -> Mapping[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self._partial(number).glob("[!.]*"))}

    def _publish(self, number: int) -> None:
        partial, final = self._partial(number), self.folder / checkpoint_name(number)
        if final.is_dir():  # renamed by an attempt whose answer was lost
            return
        save_json(manifest(self._parts(number)), partial / MANIFEST)
        partial.rename(final)

    def _remove(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def _partial(self, number: int) -> Path:
        return self.folder / f".{checkpoint_name(number)}.partial"


def checkpoint_name(number: int) -> str:
    """`checkpoint-000007`: names sort as numbers do."""
    return f"checkpoint-{number:06d}"


def manifest(parts: Mapping[str, int]) -> dict[str, Any]:
    """What makes a checkpoint of files, whose sizes are given: their sizes, and how many ranks wrote them."""
    files = {name: size for name, size in parts.items() if name != MANIFEST}
    return {"workers": sum(map(is_rank_file, files)), "files": files}
