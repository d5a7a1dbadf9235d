"""Samples of an index kept on a disk of the node, for stores and hard disks that are slower than it.

    CACHE/
      used             bytes taken, of all indexes together; changed under `lock`
      DIGEST/sums.bin  (N,) uint32: the CRC-32 of each sample that is there, 0 of the others
      DIGEST/0/17      the bytes of shard 17 at their own offsets, with holes for what is not there

What is first read stays, up to a number of bytes: an epoch comes by every sample once, and throwing out the oldest
for the newest would throw out each just before it is wanted again. All loading processes of a node share it. Two
that write the same sample write the same bytes to the same place, and its sum comes last: what a full disk, a
killed process or a lost node left half written has another sum, and is read again from where it came.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

from filelock import FileLock

from raytrain_speedup.data.shards import Index
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_BLOCK = 4096  # of the file system: what a sample takes of a file with holes
_FOLDER = 4096  # shards of a folder: loose files are one each
_MOST_OPEN = 64


class RangeCache:
    """The samples of one index in a cache.

    Args:
        folder: of the cache; other indexes may be in it too.
        max_bytes: that all of them may take on the disk.

    Raises:
        UserError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, index: Index, max_bytes: int) -> None:
        self.folder, self.index, self.max_bytes = folder, index, max_bytes
        self._mine = folder / index.digest
        try:
            self._mine.mkdir(parents=True, exist_ok=True)
            for path, size in ((folder / "used", 8), (self._mine / "sums.bin", 4 * len(index.rows))):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
                if os.fstat(descriptor).st_size < size:
                    os.ftruncate(descriptor, size)
                os.close(descriptor)
        except OSError as error:
            raise UserError(
                f"data.cache: {folder}: {error.strerror}; expected a folder to write to"
            ) from None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._full = False
        # Not mapped: on a full disk, touching a hole of a mapped file ends the process (on tmpfs, reading it).
        self._sums = _Writable(self._mine / "sums.bin")
        self._used = _Writable(self.folder / "used")
        self._open: OrderedDict[int, _Writable] = OrderedDict()
        self._between_processes = FileLock(self.folder / "lock")

    def get(self, row: int) -> bytes | None:
        """The bytes of a sample, or None if they are not there."""
        if self._pid != os.getpid():
            self._begin()
        try:
            if not (expected := int.from_bytes(os.pread(self._sums.descriptor, 4, 4 * row), "little")):
                return None
            offset, shard, length = self.index.rows[row].tolist()
            data = os.pread(self._shard(shard).descriptor, length, offset)
        except OSError:
            return None
        return data if _sum(data) == expected and len(data) == length else None

    def put(self, row: int, data: bytes) -> None:
        """Keep a sample, if there is room."""
        if self._pid != os.getpid():
            self._begin()
        if self._full or not data:
            return
        offset, shard, length = self.index.rows[row].tolist()
        try:
            if not self._take((offset + length - 1) // _BLOCK - offset // _BLOCK + 1):
                self._stop(f"{self.max_bytes / 1e9:g} GB are taken (data.cache_gb)")
                return
            _write(self._shard(shard).descriptor, data, offset)
            _write(self._sums.descriptor, _sum(data).to_bytes(4, "little"), 4 * row)
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _take(self, blocks: int) -> bool:
        """Count some blocks as taken, if they fit."""
        with self._lock, self._between_processes:
            used = int.from_bytes(os.pread(self._used.descriptor, 8, 0), "little") + blocks * _BLOCK
            if used > self.max_bytes:
                return False
            _write(self._used.descriptor, used.to_bytes(8, "little"), 0)
        return True

    def _stop(self, why: str) -> None:
        log.info("data.cache: %s: nothing is added any more: %s", self.folder, why)
        self._full = True

    def _shard(self, shard: int) -> _Writable:
        with self._lock:
            if file := self._open.get(shard):
                self._open.move_to_end(shard)
                return file
            path = self._mine / str(shard // _FOLDER) / str(shard)
            path.parent.mkdir(exist_ok=True)
            self._open[shard] = file = _Writable(path)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return file

    def __getstate__(self) -> tuple[Path, Index, int]:
        return self.folder, self.index, self.max_bytes

    def __setstate__(self, state: tuple[Path, Index, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]


class _Writable:
    """A file, made if it is not there; closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """All of it, or an error: a disk that is nearly full takes a part."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _sum(data: bytes) -> int:
    return zlib.crc32(data) or 1
