"""Parquet files with one column of image files (bytes) and one of labels, in one file or a folder of parts.

Row groups are read on demand through a memory map and kept as Arrow buffers, of which a sample is a slice
without a copy: no Python object per row. A set whose row groups do not fit in memory thrashes under a random
order; that is said in the log.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from raytrain_speedup.data.base import CorruptSample, Dataset, DataSettings, Source
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.skipped import log
from raytrain_speedup.settings import UserError

_CACHE = 512e6


class ParquetFilesSettings(DataSettings):
    """Parquet files with a column of images, for every split; what an image is of is in another column."""

    train: Path = Field(description="training data: a .parquet file, or a folder of part files")
    test: Path = Field(description="test data, likewise; read once, at the end")
    val: Path | None = Field(
        None, description="validation data, likewise; default: `val_share` of the training data"
    )
    image_column: str = Field("image", description="column of image files, as bytes or {bytes, path}")

    def open_splits(self) -> dict[str, PartFiles]:
        """The files of every split that is named."""
        paths = {"train": self.train, "test": self.test} | ({"val": self.val} if self.val else {})
        splits = {split: PartFiles(f"data.{split}", path) for split, path in paths.items()}
        for files in splits.values():
            files.require_images("data.image_column", self.image_column)
        return splits


class ParquetSettings(ParquetFilesSettings):
    """Image bytes and labels in Parquet files; Hugging Face's layout included."""

    source: Literal["parquet"] = "parquet"
    label_column: str = Field("label", description="column of class numbers or class names")

    def read(self) -> Dataset:
        tables = {split: _Table(files, self) for split, files in self.open_splits().items()}
        names = tables["train"].class_names()
        sources = {split: table.source(names) for split, table in tables.items()}
        return Dataset(sources["train"], sources["test"], names, val=sources.get("val"))


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


class PartFiles:
    """The .parquet file or folder of part files behind one key of the settings.

    Args:
        key: where the user wrote the path, such as `data.train`.
        path: of the file or folder.

    Raises:
        UserError: if there is no such thing, or it is no Parquet.
    """

    def __init__(self, key: str, path: Path) -> None:
        self.key, self.path = key, path
        self.files = {file: self._open(file) for file in self._find()}
        self.schema = next(iter(self.files.values())).schema_arrow

    def _find(self) -> list[Path]:
        if self.path.is_dir():
            files = sorted(self.path.glob("*.parquet"))
            if not files:
                raise UserError(
                    f"{self.key}: the folder {self.path} holds no .parquet file; expected part files"
                )
            return files
        if not self.path.exists():
            raise UserError(
                f"{self.key}: {self.path} does not exist (looked for it in {Path.cwd()}); "
                "expected a .parquet file or a folder of them"
            )
        return [self.path]

    def _open(self, file: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(file, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.key}: {file} is not a whole Parquet file: {reason}") from None

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
        whole = pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)
        if whole.null_count:
            row = pc.index(pc.is_null(whole), True).as_py()
            raise UserError(f"{self.key}: {self.path} row {row} has no label in column '{name}'")
        return whole

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


class _Table:
    """Images and labels of one split, checked."""

    def __init__(self, files: PartFiles, settings: ParquetSettings) -> None:
        self.settings, self.files = settings, files
        self.files.require(
            "data.label_column",
            settings.label_column,
            "whole numbers or strings",
            lambda kind: pa.types.is_integer(kind) or _is_text(kind),
        )
        self.labels = self.files.column(settings.label_column)

    def class_names(self) -> tuple[str, ...]:
        """From the schema's metadata, else the names that occur, else the numbers up to the largest."""
        metadata = self.files.schema.metadata or {}
        if b"classes" in metadata:
            return tuple(metadata[b"classes"].decode().split(","))
        if b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
            if names := features.get(self.settings.label_column, {}).get("names"):
                return tuple(names)
        if _is_text(self.labels.type):
            return tuple(sorted(pc.unique(self.labels).to_pylist()))
        largest = pc.max(self.labels).as_py()
        return tuple(str(number) for number in range((largest if largest is not None else -1) + 1))

    def source(self, class_names: tuple[str, ...]) -> ParquetSource:
        """The samples, with labels as numbers from 0 to len(class_names) - 1."""
        return self.files.images(self.settings.image_column, self._targets(class_names))

    def _targets(self, class_names: tuple[str, ...]) -> np.ndarray:
        labels = self.labels
        if _is_text(labels.type):
            labels = pc.fill_null(pc.index_in(labels, pa.array(class_names, type=labels.type)), -1)
        targets = labels.to_numpy().astype(np.int64)
        wrong = np.flatnonzero((targets < 0) | (targets >= len(class_names)))
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{self.files.key}: {self.files.path} row {row} has the label {self.labels[row].as_py()!r}; "
                f"expected one of the {len(class_names)} classes of the training data (0 to "
                f"{len(class_names) - 1})"
            )
        return targets


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
