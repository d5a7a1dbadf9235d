"""Samples by the rows of an index (`shards.py`): each by its own range of bytes, from files or from object storage.

Rows that are asked for together are requested together. In a store those that lie within `GAP` of each other are
one request: that bridges the header of a tar file and a class beside the image, and no image that is larger.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_speedup.data.index.object_store import Refused, Span, Stat, is_remote, read_spans
from raytrain_speedup.data.index.range_cache import RangeCache
from raytrain_speedup.data.index.shards import Index
from raytrain_speedup.data.index.snappy import Damaged, restore

log = logging.getLogger("raytrain_speedup.data")

GAP = 4096
"""Bytes between two samples up to which they are read at once, with what lies between them."""
LARGEST = 1 << 23
"""Bytes of a request, and one sample more: several on the way at a time are faster than one, and none times out."""
MOST_OPEN = 128
"""Files that a process keeps open: systems allow 1,024, and loaders, databases and Ray want theirs."""


class ShardError(Exception):
    """A sample that cannot be fetched; the message says why."""


class ShardReader:
    """Reads samples by their rows; a file is opened when the first sample of its is asked for.

    Args:
        cache: where samples are looked for first, and kept.

    Attributes:
        bytes_read: so far, what was read between samples included, and what came from the cache not.
    """

    def __init__(self, index: Index, cache: RangeCache | None = None) -> None:
        self.index, self.cache = index, cache
        self.bytes_read = 0
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _File] = OrderedDict()
        self._told = False

    def read(self, row: int) -> bytes:
        """The bytes of a sample.

        Raises:
            ShardError: if they are not there, or no longer where they were.
            UserError: if a store does not answer.
        """
        (found,) = self.read_many([row])
        if isinstance(found, ShardError):
            raise found
        return found

    def read_many(self, rows: Sequence[int]) -> list[bytes | ShardError]:
        """The bytes of some samples, in their order, or why they are not there.

        Raises:
            UserError: if a store does not answer.
        """
        stored = self._stored(rows)
        if self.index.packed is None:
            return stored
        return [self._unpacked(row, data) for row, data in zip(rows, stored, strict=True)]

    def _unpacked(self, row: int, stored: bytes | ShardError) -> bytes | ShardError:
        assert self.index.packed is not None
        size, start, length, literal, tail = self.index.packed[row].tolist()
        if isinstance(stored, ShardError) or not literal:
            return stored
        try:
            return restore(stored, size, literal, tail)[start : start + length]
        except Damaged as error:
            return ShardError(f"it does not decompress ({error})")

    def _stored(self, rows: Sequence[int]) -> list[bytes | ShardError]:
        """As they lie there, or in the cache."""
        if self.cache is None:
            return self._fetched(rows)
        found: dict[int, bytes | ShardError] = {}
        for row in rows:
            if (data := self.cache.get(row)) is not None:
                found[row] = data
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for row, fetched in zip(missing, self._fetched(missing), strict=True):
            found[row] = fetched
            if isinstance(fetched, bytes):
                self.cache.put(row, fetched)
        return [found[row] for row in rows]

    def _fetched(self, rows: Sequence[int]) -> list[bytes | ShardError]:
        if is_remote(self.index.root):
            return self._from_store(rows)
        return [self._from_file(row) for row in rows]

    # --- files -----------------------------------------------------------------------------------------

    def _from_file(self, row: int) -> bytes | ShardError:
        offset, shard, length = self.index.rows[row].tolist()
        try:
            data = self._file(shard).read_at(length, offset)
        except ShardError as error:
            return error
        except OSError as error:
            return ShardError(error.strerror or str(error))
        if len(data) != length:
            return ShardError(f"the file ends after {len(data)} of its {length} bytes")
        self.bytes_read += length
        return data

    def _file(self, shard: int) -> _File:
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            if file := self._open.get(shard):
                self._open.move_to_end(shard)
                return file
        file = _File(os.open(Path(self.index.root) / self.index.name(shard), os.O_RDONLY))
        if (size := file.size()) != (expected := int(self.index.shards[shard]["size"])):
            raise _of_another_size(size, expected)
        if not self._told:
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

    # --- objects ---------------------------------------------------------------------------------------

    def _from_store(self, rows: Sequence[int]) -> list[bytes | ShardError]:
        found: list[bytes | ShardError] = [b""] * len(rows)
        wanted = self.index.rows[np.asarray(rows, dtype=np.int64)]
        groups = list(_neighbours(wanted))
        spans = [
            Span(self.index.name(int(wanted["shard"][group[0]])), *_bounds(wanted[group])) for group in groups
        ]
        for group, span, answer in zip(groups, spans, read_spans(self.index.root, spans), strict=True):
            if isinstance(answer, Refused):
                failed: ShardError | None = ShardError(str(answer))
            else:
                stat, data = answer
                self.bytes_read += len(data)
                failed = self._changed(int(wanted["shard"][group[0]]), stat)
            for number in group.tolist():
                start = int(wanted["offset"][number]) - span.start
                found[number] = failed or data[start : start + int(wanted["length"][number])]
        return found

    def _changed(self, shard: int, stat: Stat) -> ShardError | None:
        """Whether an object is another one than was indexed. The answer to every request says what it is of."""
        known = self.index.shards[shard]
        if stat.size != int(known["size"]):
            return _of_another_size(stat.size, int(known["size"]))
        if known["tag"] and stat.tag != int(known["tag"]):  # none: a copy of files that were indexed
            return ShardError("it was written anew after it was indexed: index it again")
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _File:
    """A file that is read by position, from any thread; closed when nobody holds it any more: a thread may read
    what another has just put out of the table."""

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


def _neighbours(wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Positions in `wanted`, (n,) of `ROW`, of samples that are read at once; those of no bytes are left out."""
    order = np.lexsort((wanted["offset"], wanted["shard"]))
    order = order[wanted["length"][order] > 0]
    if not len(order):
        return
    shard, start = wanted["shard"][order], wanted["offset"][order].astype(np.int64)
    stop, part = start + wanted["length"][order], start // LARGEST
    apart = (shard[1:] != shard[:-1]) | (start[1:] > stop[:-1] + GAP) | (part[1:] != part[:-1])
    yield from np.split(order, np.flatnonzero(apart) + 1)


def _bounds(rows: np.ndarray) -> tuple[int, int]:
    start = rows["offset"].astype(np.int64)
    return int(start.min()), int((start + rows["length"]).max())


def _of_another_size(size: int, expected: int) -> ShardError:
    return ShardError(f"it has {size} bytes and had {expected} when it was indexed: index it again")
