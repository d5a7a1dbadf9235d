"""An index of the samples in many files: which file each is in, where, how long, and of which class.

A pruned epoch reads samples in any order and leaves many out. With an index each costs one read of its own bytes,
whatever archive they lie in, and what is pruned is never read. The tables are NumPy files mapped into memory: they
open in milliseconds at any size, and the processes of a node share their pages.

    INDEX/
      index.json    version, class names, root of the shards
      rows.npy      (N,) of `ROW`, 16 bytes a sample
      targets.npy   (N,) int64
      shards.npy    (S,) of `SHARD`
      names.bin     the shards' paths below the root, one behind the other
      quarantine.csv    rows to leave out and why, where there are any (`checking.py`)

Shards are tar files, or loose files of one sample each; `indexing.py` makes indexes.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raytrain_speedup.settings import UserError

log = logging.getLogger(__name__)

VERSION = 1
ROW = np.dtype([("offset", "<u8"), ("shard", "<u4"), ("length", "<u4")])
"""One sample: `length` bytes from `offset` on, in the file number `shard`."""
SHARD = np.dtype([("size", "<u8"), ("changed_ns", "<i8"), ("name_end", "<u8")])
"""One file, as it was when it was indexed; its name ends at `name_end` in names.bin."""
QUARANTINE = "quarantine.csv"
MOST_OPEN = 128
"""Files that a process keeps open: systems allow 1,024, and loaders, databases and Ray want theirs."""


@dataclass(frozen=True)
class Index:
    """An index that was opened; equal ones are read from the same folder.

    Attributes:
        folder: where it is.
        root: folder or URI that the names of the shards are relative to.
        class_names: by class number.
        rows: (N,) of `ROW`.
        targets: (N,) int64.
        shards: (S,) of `SHARD`.
        names: (bytes,) uint8, the shards' paths.
    """

    folder: Path
    root: str
    class_names: tuple[str, ...]
    rows: np.ndarray
    targets: np.ndarray
    shards: np.ndarray
    names: np.ndarray

    def name(self, shard: int) -> str:
        """The path of a shard below the root."""
        start = int(self.shards[shard - 1]["name_end"]) if shard else 0
        return os.fsdecode(self.names[start : int(self.shards[shard]["name_end"])].tobytes())

    def quarantined(self) -> np.ndarray:
        """(n,) int64, ascending: the rows that its quarantine list leaves out.

        Raises:
            UserError: if the list names anything that is no row.
        """
        path, rows = self.folder / QUARANTINE, set()
        if not path.exists():
            return np.empty(0, dtype=np.int64)
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.reader(file)  # names of files may have commas and line ends in them
            next(table, None)
            for fields in table:
                row = fields[0] if fields else ""
                if not row.isdecimal() or int(row) >= len(self.rows):
                    raise UserError(
                        f"{path}: line {table.line_num} names row {row!r}; expected one from 0 to "
                        f"{len(self.rows) - 1}, as `speedup data check` writes them"
                    )
                rows.add(int(row))
        return np.array(sorted(rows), dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_index, (self.folder,)  # a mapped array would be sent whole


def open_index(folder: Path, key: str = "data.train") -> Index:
    """Map the tables of an index.

    Args:
        key: of the settings, for messages.

    Raises:
        UserError: if there is none, or one of another version, or a damaged one.
    """
    try:
        head = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{key}: {folder} is no index; expected a folder that `speedup data index SRC -o {folder}` made"
        ) from None
    if head.get("version") != VERSION:
        raise UserError(
            f"{key}: {folder} is an index of version {head.get('version')}; expected {VERSION}: make it again with "
            f"`speedup data index {head.get('root', 'SRC')} -o {folder}`"
        )
    try:
        tables = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rows", "targets", "shards")
        }
        names = np.memmap(folder / "names.bin", dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: the index {folder} is damaged: {error}; expected to be made again") from None
    if len(tables["rows"]) != len(tables["targets"]):
        raise UserError(f"{key}: the index {folder} is damaged: its tables differ in length; make it again")
    return Index(folder.absolute(), head["root"], tuple(head["class_names"]), names=names, **tables)


@dataclass(frozen=True)
class ShardRows:
    """What was found in one shard, or in one folder of loose files.

    Attributes:
        names: of the shards below the root.
        stats: (size, time of the last change in ns) of each.
        shard: (n,) which of them a sample is in.
        offset, length: (n,) in bytes.
        classes: names of classes.
        label: (n,) which of these a sample is of.
    """

    names: list[str]
    stats: list[tuple[int, int]]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    classes: list[str]
    label: np.ndarray


def write_index(folder: Path, root: str, parts: Sequence[ShardRows]) -> Index:
    """Write an index, whole or not at all; one that is there is replaced.

    Class names that are all numbers are sorted as numbers.
    """
    found = {name for part in parts for name in part.classes}
    numbers = all(name.isdecimal() for name in found)
    class_names = sorted(found, key=int if numbers else str)
    number = {name: target for target, name in enumerate(class_names)}
    count = sum(len(part.label) for part in parts)
    targets = np.empty(count, dtype=np.int64)
    rows = np.empty(count, dtype=ROW)
    shards = np.empty(sum(len(part.names) for part in parts), dtype=SHARD)
    written = first = row = end = 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    aside.mkdir()
    try:
        with (aside / "names.bin").open("wb") as blob:
            for part in parts:
                for name, (size, changed) in zip(part.names, part.stats, strict=True):
                    end += blob.write(os.fsencode(name))
                    shards[written] = size, changed, end
                    written += 1
                here = slice(row, row := row + len(part.label))
                targets[here] = np.array([number[name] for name in part.classes], dtype=np.int64)[part.label]
                rows["shard"][here] = part.shard + first
                rows["offset"][here], rows["length"][here] = part.offset, part.length
                first = written
        np.save(aside / "rows.npy", rows)
        np.save(aside / "targets.npy", targets)
        np.save(aside / "shards.npy", shards)
        head = {"version": VERSION, "root": root, "class_names": class_names}
        (aside / "index.json").write_text(json.dumps(head), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return open_index(folder)


class ShardError(Exception):
    """A sample that cannot be fetched; the message says why."""


class _File(Protocol):
    """Closed when nobody holds it any more: a thread may read what another has just put out of the table."""

    def size(self) -> int: ...
    def read_at(self, nbytes: int, offset: int) -> bytes: ...


class _LocalFile:
    """A file that is read by position, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def changed_ns(self) -> int:
        return os.fstat(self._fd).st_mtime_ns

    def read_at(self, nbytes: int, offset: int) -> bytes:
        return os.pread(self._fd, nbytes, offset)

    def __del__(self) -> None:
        os.close(self._fd)


class ShardReader:
    """Reads samples by their rows; files are opened when the first sample of theirs is asked for.

    It is made in the process that reads: neither descriptors nor the clients of an object store outlive a fork.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.bytes_read = 0
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _File] = OrderedDict()
        self._store: Any = None
        self._told = False

    def read(self, row: int) -> bytes:
        """The bytes of a sample.

        Raises:
            ShardError: if they are not there, or no longer where they were.
        """
        offset, shard, length = self.index.rows[row].tolist()
        try:
            data = bytes(self._file(shard).read_at(length, offset))
        except OSError as error:
            raise ShardError(error.strerror or str(error)) from None
        if len(data) != length:
            raise ShardError(f"the file ends after {len(data)} of its {length} bytes")
        self.bytes_read += length
        return data

    def _file(self, shard: int) -> _File:
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            if file := self._open.get(shard):
                self._open.move_to_end(shard)
                return file
        file = self._opened(self.index.name(shard))
        expected = int(self.index.shards[shard]["size"])
        if (size := file.size()) != expected:
            raise ShardError(f"it has {size} bytes and had {expected} when it was indexed: index it again")
        if not self._told and isinstance(file, _LocalFile):
            self._told = file.changed_ns() != int(self.index.shards[shard]["changed_ns"])
            if self._told:  # a copy is younger too, so it is no error
                log.warning(
                    "%s/%s was written after it was indexed; where it is no copy of what was indexed, samples are "
                    "read from wrong places: index it again",
                    self.index.root,
                    self.index.name(shard),
                )
        with self._lock:
            self._open[shard] = file
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return file

    def _opened(self, name: str) -> _File:
        if "://" not in self.index.root:
            return _LocalFile(os.open(Path(self.index.root) / name, os.O_RDONLY))
        if self._store is None:
            from pyarrow.fs import FileSystem

            self._store = FileSystem.from_uri(self.index.root)
        store, root = self._store
        return store.open_input_file(f"{root}/{name}")

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["index"])  # type: ignore[misc]
