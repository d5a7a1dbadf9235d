"""Parquet files with one column of image files (bytes) and one of labels, in one file or a folder of parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raytrain_speedup.data.base import Dataset, FilesSettings
from raytrain_speedup.data.parquet_files import ParquetSource, PartFiles, Stored, is_text
from raytrain_speedup.data.unreadable import log
from raytrain_speedup.settings import UserError

_MOST_NUMBERS = 1 << 16
"""Class numbers up to here may have gaps; beyond it most of them must occur."""
_NAMED_BY = (b"classes", b"huggingface")
"""Keys of a schema's metadata that name the classes; the first goes before the second."""
_ENOUGH_ROWS = 1000
"""Rows in which not even two have one class: so many are no coincidence."""


class ParquetFilesSettings(FilesSettings):
    """Parquet files with a column of images, for every split; what an image is of is in another column."""

    train: Path = Field(description="training data: a .parquet file, or a folder of part files")
    test: Path | None = Field(
        None,
        description="test data, likewise; read once, at the end; default: `test_fraction` of the training data",
    )
    val: Path | None = Field(
        None, description="validation data, likewise; default: `val_fraction` of the training data"
    )
    image_column: str = Field("image", description="column of image files, as bytes or {bytes, path}")

    def open_splits(self) -> dict[str, PartFiles]:
        """The files of every split that is named."""
        paths = {"train": self.train, "test": self.test, "val": self.val}
        splits = {split: PartFiles(f"data.{split}", path) for split, path in paths.items() if path}
        for files in splits.values():
            files.require_images("data.image_column", self.image_column)
        return splits


class ParquetSettings(ParquetFilesSettings):
    """Image bytes and labels in Parquet files; Hugging Face's layout included."""

    source: Literal["parquet"] = "parquet"
    label_column: str = Field("label", description="column of class numbers or class names")

    def read(self) -> Dataset:
        splits = self.open_splits()
        classes = {
            split: _class_column(files, self.label_column, "data.label_column")
            for split, files in splits.items()
        }
        names = classes["train"].class_names()
        sources = {
            split: files.images(self.image_column, classes[split].targets(names))
            for split, files in splits.items()
        }
        return Dataset(sources["train"], sources.get("test"), names, val=sources.get("val"))


def open_parquet(
    key: str, where: str, named: Sequence[Path | Stored], image_column: str, label_column: str
) -> tuple[ParquetSource, tuple[str, ...]]:
    """The images of some Parquet files, and the names of their classes.

    Args:
        key, where: for messages.

    Raises:
        UserError: as `ParquetSettings.read`.
    """
    files = PartFiles(key, where, named)
    files.require_images("--image-column", image_column)
    column = _class_column(files, label_column, "--label-column")
    names = column.class_names()
    return files.images(image_column, column.targets(names)), names


def require_classes(files: PartFiles, column: str, key: str) -> None:
    """Refuse files without a column that may hold classes.

    Args:
        key: of the settings that names it, for messages.
    """
    files.require(
        key, column, "whole numbers or strings", lambda kind: pa.types.is_integer(kind) or is_text(kind)
    )


def _class_column(files: PartFiles, column: str, key: str) -> ClassColumn:
    require_classes(files, column, key)
    metadata = [parquet.schema_arrow.metadata for parquet in files.files.values()]
    return ClassColumn(files.key, files.path, key, column, files.column(column), metadata)


@dataclass(frozen=True)
class ClassColumn:
    """The classes of a split.

    Attributes:
        key, where: of the split, for messages.
        column_key, column: what names the column, and its name.
        labels: (N,) whole numbers or strings.
        metadata: of the schema of each file.
    """

    key: str
    where: Path | str
    column_key: str
    column: str
    labels: pa.ChunkedArray
    metadata: Sequence[Mapping[bytes, bytes] | None]

    def class_names(self) -> tuple[str, ...]:
        """From the schema's metadata, else the names that occur, else the numbers up to the largest.

        A name that several classes have gets their numbers behind it: ImageNet has two of "crane".

        Raises:
            UserError: if the labels look like anything but classes, or files have other names of classes.
        """
        told = {tuple((metadata or {}).get(key) for key in _NAMED_BY) for metadata in self.metadata}
        published = {names for classes, inner in told if (names := self._published_names(classes, inner))}
        if len(published) > 1:
            one, other, *_ = sorted(published)
            raise UserError(
                f"{self.key}: {self.where}: its files have different names of classes in their metadata ("
                f"{len(one)}, the first '{one[0]}'; {len(other)}, the first '{other[0]}'); expected the same in all"
            )
        if published:
            return _told_apart(published.pop())
        distinct = pc.unique(self.labels)
        if len(distinct) == len(self.labels) > _ENOUGH_ROWS:
            raise self._no_classes(f"a value of its own in each of the {len(self.labels)} rows")
        if is_text(self.labels.type):
            return tuple(sorted(distinct.to_pylist()))
        numbers = 1 + (pc.max(distinct).as_py() if len(distinct) else -1)
        if numbers > max(_MOST_NUMBERS, 2 * len(distinct)):
            raise self._no_classes(f"{len(distinct)} different numbers up to {numbers - 1}")
        return tuple(str(number) for number in range(numbers))

    def _no_classes(self, found: str) -> UserError:
        return UserError(
            f"{self.column_key}: column '{self.column}' of {self.where} holds {found}, as identifiers do; "
            "expected class numbers from 0 on, or class names"
        )

    def _published_names(self, classes: bytes | None, hugging_face: bytes | None) -> tuple[str, ...] | None:
        """The class names in the metadata of files; what cannot be made sense of there is reported."""
        try:
            if classes is not None:
                return tuple(classes.decode().split(","))
            if hugging_face is not None:
                return _hugging_faces_names(hugging_face, self.column)
        except ValueError as error:  # no UTF-8, no JSON, or not in the form that is expected
            log.warning(
                "%s: no class names are taken from the metadata of %s: %s", self.key, self.where, error
            )
        return None

    def targets(self, class_names: tuple[str, ...]) -> np.ndarray:
        """(N,) int64, numbers from 0 to len(class_names) - 1.

        Raises:
            UserError: if a label is none of these.
        """
        labels = self.labels
        if is_text(labels.type):
            labels = pc.fill_null(pc.index_in(labels, pa.array(class_names, type=labels.type)), -1)
        targets = labels.to_numpy().astype(np.int64)
        wrong = np.flatnonzero((targets < 0) | (targets >= len(class_names)))
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{self.key}: {self.where} row {row} has the label {self.labels[row].as_py()!r}; "
                f"expected one of the {len(class_names)} classes of the training data (0 to "
                f"{len(class_names) - 1})"
            )
        return targets


def _told_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names, those that stand more than once with their numbers: classes are known by their names."""
    count = Counter(names)
    return tuple(f"{name} ({number})" if count[name] > 1 else name for number, name in enumerate(names))


def _hugging_faces_names(metadata: bytes, column: str) -> tuple[str, ...] | None:
    """`info.features.COLUMN.names`, or None where the column has no such thing.

    Raises:
        ValueError: if the metadata are in another form.
    """
    inner = json.loads(metadata)
    for key in ("info", "features", column, "names"):
        if not isinstance(inner, dict):
            raise ValueError(f"Hugging Face's 'info.features.{column}.names' was expected, not {inner!s:.60}")
        inner = inner.get(key, {})
    if inner == {}:
        return None
    if not isinstance(inner, list) or not all(isinstance(name, str) for name in inner):
        raise ValueError(
            f"the names of Hugging Face's feature '{column}' are no list of names: {inner!s:.60}"
        )
    return tuple(inner)
