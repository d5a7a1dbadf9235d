"""Samples of an index kept on a disk of the node, for stores and hard disks that are slower than it.

    CACHE/
      used             bytes taken, of all indexes together; changed under `lock`
      DIGEST/sums.bin  (N,) uint32: the CRC-32 of each sample that is there, 0 of the others
      DIGEST/0/17      the bytes of shard 17 at their own offsets, with holes for what is not there

Of an index in use, what is first read stays: an epoch comes by every sample once, and throwing out the oldest for
the newest would throw out each just before it is wanted again (at half the size of the data, a half of the reads
are spared so, and .15 of them where the least recently used leaves). What leaves to make room are indexes that no
process uses, the one that was used longest ago first; and where `cache_gb` is smaller than what is there, whole
shards of the one in use.

All loading processes of a node share it. Two that write the same sample write the same bytes to the same place, and
its sum comes last: what a full disk, a killed process, a lost node or an emptied shard left has another sum, and is
read again from where it came. A process holds a shared lock on the `sums.bin` it uses, which ends with the process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from raytrain_speedup.data.index.shards import Index
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_BLOCK = 4096  # of the file system: what a sample takes of a file with holes
_FOLDER = 4096  # shards of a folder: loose files are one each
_MOST_OPEN = 64
_SUMS = "sums.bin"


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
            self._begin()
            with self._between_processes:
                if self._counted() > max_bytes and self._make_room(0) > max_bytes:
                    self._empty_own_shards()
        except OSError as error:
            raise UserError(
                f"data.cache: {folder}: {error.strerror}; expected a folder to write to"
            ) from None

    def _begin(self) -> None:
        """What a process has for itself. While it has it, no other one evicts the index."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._full = False
        self._open: OrderedDict[int, _Writable] = OrderedDict()
        self._mine.parent.mkdir(parents=True, exist_ok=True)
        self._between_processes = FileLock(self.folder / "lock")
        with self._between_processes:
            self._mine.mkdir(exist_ok=True)
            # Not mapped: on a full disk, touching a hole of a mapped file ends the process (on tmpfs, reading it).
            self._used = _Writable(self.folder / "used", size=8)
            self._sums = _Writable(self._mine / _SUMS, size=4 * len(self.index.rows))
            fcntl.flock(self._sums.descriptor, fcntl.LOCK_SH)
            os.utime(self._mine)

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
        wanted = blocks * _BLOCK
        with self._lock, self._between_processes:
            used = self._counted()
            if used + wanted > self.max_bytes:
                used = self._make_room(wanted)
            if used + wanted > self.max_bytes:
                return False
            self._count(used + wanted)
        return True

    def _counted(self) -> int:
        return int.from_bytes(os.pread(self._used.descriptor, 8, 0), "little")

    def _count(self, used: int) -> None:
        _write(self._used.descriptor, used.to_bytes(8, "little"), 0)

    def _make_room(self, wanted: int) -> int:
        """Evict indexes that nobody uses until so many bytes fit, or none is left; the bytes that are then taken.
        They are counted anew: a sample that two processes kept was counted twice."""
        taken = {place: _bytes_on_disk(place) for place in self.folder.iterdir() if place.is_dir()}
        for place in sorted(taken, key=lambda place: place.stat().st_mtime_ns):
            if sum(taken.values()) + wanted <= self.max_bytes:
                break
            if place != self._mine and not _in_use(place):
                log.info("data.cache: %s: the samples of an index that is not in use leave", place)
                shutil.rmtree(place)
                del taken[place]
        self._count(used := sum(taken.values()))
        return used

    def _empty_own_shards(self) -> None:
        """Drop whole shards of this index, those that were written longest ago first, until all is within the
        limit. They are cut and not removed: other processes have them open, and what they add is to be seen."""
        used = self._counted()
        for shard in sorted(_shards(self._mine), key=lambda path: path.stat().st_mtime_ns):
            if used <= self.max_bytes:
                break
            used -= shard.stat().st_blocks * 512
            os.truncate(shard, 0)
        self._count(used)

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
    """A file, made if it is not there, of a size at least; closed when nobody holds it any more."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _shards(place: Path) -> Iterator[Path]:
    """The files of an index in the cache."""
    return place.glob("*/*")


def _bytes_on_disk(place: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in _shards(place))


def _in_use(place: Path) -> bool:
    """Whether a process holds the lock of an index."""
    file = _Writable(place / _SUMS)
    try:
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """All of it, or an error: a disk that is nearly full takes a part."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _sum(data: bytes) -> int:
    return zlib.crc32(data) or 1
