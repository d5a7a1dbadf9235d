"""Images in the row groups of Parquet files, read on demand.

Row groups are read through a memory map and kept as Arrow buffers, of which a sample is a slice without a copy:
no Python object per row. A set whose row groups do not fit in memory thrashes under a random order; that is said
in the log.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain_speedup.data.base import CorruptSample, Source
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.skipped import log

_CACHE = 512e6


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file."""

    file: Path
    number: int
    rows: int
    size: int


class ParquetSource(Source):
    """Images in row groups, by position over all of them.

    Args:
        column: name of the image column.
        groups: the row groups, in order.
        targets: (N,) int64.
    """

    def __init__(self, column: str, groups: list[RowGroup], targets: np.ndarray) -> None:
        self.column, self.groups, self.targets = column, groups, targets
        self._ends = np.cumsum([group.rows for group in groups])
        self._limit = _CACHE
        self._forget()

    def _forget(self) -> None:
        self._files: dict[Path, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Array | str] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"column": self.column, "groups": self.groups, "targets": self.targets, "limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["column"], state["groups"], state["targets"])  # type: ignore[misc]
        self._limit = state["limit"]

    def encoded(self, index: int) -> memoryview:
        number, row = self._find(index)
        array = self._group(number)
        if isinstance(array, str):
            raise CorruptSample(index, self.locate(index), array)
        if not array[row].is_valid:
            raise CorruptSample(index, self.locate(index), "there is no image in this row")
        return memoryview(array[row].as_buffer()).cast("B")

    def decode(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), self, index)

    def locate(self, index: int) -> str:
        number, row = self._find(index)
        group = self.groups[number]
        before = sum(g.rows for g in self.groups[:number] if g.file == group.file)
        return f"{group.file} row {before + row}"

    def prepare(self, memory_limit: float) -> None:
        """Read all row groups ahead if they fit, so that forked workers share them."""
        total = sum(group.size for group in self.groups)
        self._limit = max(memory_limit, _CACHE)
        if total <= self._limit:
            for number in range(len(self.groups)):
                self._group(number)
        else:
            log.warning(
                "%s: %.1f GB of images do not fit in data.memory_limit_gb=%g; row groups will be read again "
                "and again",
                self.groups[0].file,
                total / 1e9,
                memory_limit / 1e9,
            )

    def _find(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self.groups[number].rows

    def _group(self, number: int) -> pa.Array | str:
        """The image column of a row group, or why it cannot be read; the least recently used ones go."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            self._cache[number] = array = self._read(self.groups[number])
            self._held += self.groups[number].size
            while self._held > self._limit and len(self._cache) > 1:
                gone, _ = self._cache.popitem(last=False)
                self._held -= self.groups[gone].size
            return array

    def _read(self, group: RowGroup) -> pa.Array | str:
        try:
            if group.file not in self._files:
                self._files[group.file] = pq.ParquetFile(group.file, memory_map=True)
            table = self._files[group.file].read_row_group(
                group.number, columns=[self.column], use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            return f"row group {group.number} cannot be read: {error}".splitlines()[0]
        array = table.column(0).combine_chunks()
        return array.field("bytes") if pa.types.is_struct(array.type) else array
