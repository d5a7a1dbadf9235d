"""A file that may be an object in a store, of which little is read here and there, as headers are.

Headers come by range reads with a window ahead, which grows while they are close to each other and is small where
images lie between them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from raytrain_speedup.data.index.object_store import Refused, Span, Stat, read_spans

SMALLEST_WINDOW, LARGEST_WINDOW = 1 << 12, 1 << 20


@contextmanager
def open_shard(root: str, name: str, stat: Stat | None) -> Iterator[tuple[IO[bytes], Stat]]:
    """A file for reading, and what there is to know of it.

    Args:
        root: folder or URI that it is in.
        stat: of an object in a store; None where it is a file.
    """
    if stat is not None:
        yield RangeFile(root, name, stat), stat  # type: ignore[misc]
        return
    with (Path(root) / name).open("rb") as file:
        status = os.fstat(file.fileno())
        yield file, Stat(status.st_size, status.st_mtime_ns, 0)


class RangeFile(io.RawIOBase):
    """An object as a file: what is read comes with a window of what follows.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, root: str, name: str, stat: Stat) -> None:
        super().__init__()
        self.bytes_read = 0
        self._root, self._name, self._stat = root, name, stat
        self._at = self._start = 0
        self._held = b""
        self._window = SMALLEST_WINDOW

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._stat.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._stat.size)
        if stop <= self._at:
            return 0
        if not self._start <= self._at <= stop <= self._start + len(self._held):
            self._fetch(stop)
        data = self._held[self._at - self._start : stop - self._start]
        buffer[: len(data)] = data
        self._at = stop
        return len(data)

    def _fetch(self, stop: int) -> None:
        """Hold what lies between here and `stop`, and a window: twice the last one where that ended near here."""
        passed_over = self._at - (self._start + len(self._held))
        near = abs(passed_over) <= self._window
        self._window = min(2 * self._window, LARGEST_WINDOW) if near else SMALLEST_WINDOW
        stop = min(max(stop, self._at + self._window), self._stat.size)
        held = (
            self._held[self._at - self._start :] if self._at >= self._start else b""
        )  # what follows is asked for
        (found,) = read_spans(self._root, [Span(self._name, self._at + len(held), stop)])
        if isinstance(found, Refused):
            raise OSError(str(found))
        stat, more = found
        if stat != self._stat:
            raise OSError("it was written anew meanwhile")
        self._start, self._held = self._at, held + more
        self.bytes_read += len(more)
