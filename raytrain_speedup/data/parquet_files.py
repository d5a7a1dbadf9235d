"""The Parquet files of a split, one of them or a folder of parts, and the images in their row groups.

What the files lack is named by file and column. Row groups are read on demand, through a memory map, and kept
as Arrow buffers, of which a sample is a slice without a copy: no Python object per row. A set whose row groups
do not fit in memory thrashes under a random order; that is said in the log.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain_speedup.data.base import CorruptSample, Source
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.folders import is_folder, listed, shown, some
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.range_file import RangeFile
from raytrain_speedup.data.unreadable import log
from raytrain_speedup.settings import UserError

_CACHE = 512e6  # bytes of row groups that are held in any case


class PartFiles:
    """The .parquet file or folder of part files behind one key of the settings.

    Args:
        key: where the user wrote the path, such as `data.train`.
        path: of the file, the folder, or of some files of a folder, with a * in the name.
        files: those that are found there; default: looked for, on a disk.

    Raises:
        UserError: if there is no such thing, or it is no Parquet.
    """

    def __init__(self, key: str, path: Path | str, files: Sequence[Path | Stored] = ()) -> None:
        self.key, self.path = key, path
        self.files = {file: _opened(key, file) for file in files or self._find(Path(path))}
        self.schema = next(iter(self.files.values())).schema_arrow

    def _find(self, path: Path) -> list[Path]:
        if "*" in path.name and not path.exists():
            return self._parts(path.parent, path.name)
        if is_folder(self.key, path):
            return self._parts(path, "*")
        if not path.exists():
            raise UserError(
                f"{self.key}: {shown(path)} does not exist (looked for it in {shown(Path.cwd())}); "
                "expected a .parquet file or a folder of them"
            )
        return [path]

    def _parts(self, folder: Path, pattern: str) -> list[Path]:
        entries = [entry for entry in listed(self.key, folder) if fnmatchcase(entry.name, pattern)]
        folders = [entry.name for entry in entries if is_folder(self.key, entry)]
        files = [
            Path(entry.path)
            for entry in entries
            if entry.name.endswith(".parquet") and entry.name not in folders
        ]
        if not files:
            called = "" if pattern == "*" else f" called {pattern}"
            raise UserError(
                f"{self.key}: the folder {shown(folder)} holds no .parquet file{called}; expected part files"
            )
        if folders:
            log.warning("%s: folders in %s are not read: %s", self.key, shown(folder), some(folders))
        return files

    @property
    def rows(self) -> int:
        """Of all files together."""
        return sum(parquet.metadata.num_rows for parquet in self.files.values())

    def require(self, key: str, column: str, expected: str, fits: Callable[[pa.DataType], bool]) -> None:
        """Refuse files without a column of the kind that `key` asks for."""
        for file, parquet in self.files.items():
            schema = parquet.schema_arrow
            if column not in schema.names:
                raise UserError(
                    f"{key}: {file} has no column '{column}'; expected one of: {', '.join(schema.names)}"
                )
            if (count := schema.names.count(column)) > 1:
                raise UserError(f"{key}: {file} has {count} columns of the name '{column}'; expected one")
            if not fits(kind := schema.field(column).type):
                raise UserError(f"{key}: column '{column}' of {file} holds {kind}; expected {expected}")

    def require_images(self, key: str, column: str) -> None:
        """Refuse files without a column of image files."""
        self.require(key, column, "image files as binary", _holds_files)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, without gaps."""
        try:
            parts = [parquet.read(columns=[name]).column(0) for parquet in self.files.values()]
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.key}: {self.path} cannot be read: {str(error).splitlines()[0]}") from None
        return join_parts(self.key, self.path, name, parts)

    def images(self, column: str, targets: np.ndarray) -> ParquetSource:
        """The image files of a column, with their targets."""
        groups = []
        for file, parquet in self.files.items():
            position = parquet.schema_arrow.names.index(column)
            for number in range(parquet.num_row_groups):
                meta = parquet.metadata.row_group(number)
                # A column of structs takes more columns than one in the file: then the group's size will do.
                flat = meta.num_columns == len(parquet.schema_arrow.names)
                size = meta.column(position).total_uncompressed_size if flat else meta.total_byte_size
                groups.append(RowGroup(file, number, meta.num_rows, size))
        return ParquetSource(column, groups, targets)


@dataclass(frozen=True)
class Stored:
    """A file in object storage."""

    root: str
    name: str
    stat: Stat

    def __str__(self) -> str:
        return f"{self.root}/{self.name}"


def _reader(file: Path | Stored) -> pq.ParquetFile:
    if isinstance(file, Stored):
        return pq.ParquetFile(pa.PythonFile(RangeFile(file.root, file.name, file.stat), mode="r"))
    return pq.ParquetFile(file, memory_map=True)


def _opened(key: str, file: Path | Stored) -> pq.ParquetFile:
    """A Parquet file, its schema read.

    Raises:
        UserError: if it is none.
    """
    name = shown(str(file))
    try:
        return _reader(file)
    except UnicodeEncodeError:
        raise UserError(f"{key}: {name} is not UTF-8; expected a path that is") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{key}: {name} has a column whose name is not UTF-8; expected names that are"
        ) from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}: {name} is not a whole Parquet file: {reason}") from None


def join_parts(key: str, where: Path | str, name: str, parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """The parts of a column as one: whole numbers of any width are as good as others, and so are strings.

    Raises:
        UserError: if they are of different kinds, or there are gaps.
    """
    kinds = {part.type for part in parts}
    if all(is_text(kind) for kind in kinds):
        wide = pa.large_string()
    elif all(pa.types.is_integer(kind) for kind in kinds):
        wide = pa.int64()
    else:
        raise UserError(
            f"{key}: column '{name}' holds {' and '.join(sorted(map(str, kinds)))} in the files of "
            f"{where}; expected the same in all of them"
        )
    try:
        whole = pa.chunked_array([chunk for part in parts for chunk in part.cast(wide).chunks], type=wide)
        whole.validate(full=True)
    except pa.ArrowInvalid as error:  # a number beyond int64, or text that is not UTF-8
        raise UserError(f"{key}: column '{name}' of {where}: {str(error).splitlines()[0]}") from None
    if whole.null_count:
        row = pc.index(pc.is_null(whole), True).as_py()
        raise UserError(f"{key}: {where} row {row} has no label in column '{name}'")
    return whole


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file."""

    file: Path | Stored
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
        self._files: dict[Path | Stored, pq.ParquetFile] = {}
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
                self._files[group.file] = _reader(group.file)
            table = self._files[group.file].read_row_group(
                group.number, columns=[self.column], use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            return f"row group {group.number} cannot be read: {error}".splitlines()[0]
        array = table.column(0).combine_chunks()
        return array.field("bytes") if pa.types.is_struct(array.type) else array


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
