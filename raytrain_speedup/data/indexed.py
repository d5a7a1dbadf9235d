"""Samples by an index: tar files or loose files, here or in object storage, each read by its own range of bytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import Augment, Buffer, CorruptSample, Dataset, DataSettings, Source, Subset
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.reading import ShardError, ShardReader
from raytrain_speedup.data.shards import Index, open_index
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")


class IndexedSettings(DataSettings):
    """Indexes that `speedup data index` made, one for each split."""

    source: Literal["index"] = "index"
    train: Path = Field(description="index of the training data (`speedup data index SRC -o INDEX`)")
    test: Path = Field(description="index of the test data; read once, at the end")
    val: Path | None = Field(
        None, description="index of the validation data; default: `val_fraction` of the training data"
    )
    image_size: int = Field(224, ge=4, le=2048, description="image size the network sees, in pixels")
    augment: Augment = Field(
        "random-resized-crop", description="crop: shift by up to `padding`; crop-flip: and horizontal flip"
    )

    def read(self) -> Dataset:
        folders = {"train": self.train, "test": self.test} | ({"val": self.val} if self.val else {})
        indexes = {split: open_index(folder, f"data.{split}") for split, folder in folders.items()}
        names = indexes["train"].class_names
        sources = {
            split: _without_quarantined(IndexedSource(index, _targets(index, names, split)), split)
            for split, index in indexes.items()
        }
        return Dataset(sources["train"], sources["test"], names, val=sources.get("val"))


def _without_quarantined(source: IndexedSource, split: str) -> Source:
    """The samples of an index but those that its quarantine list names; says how many those are."""
    left_out = source.index.quarantined()
    if not len(left_out):
        return source
    log.info("data.%s: %d samples in quarantine are left out (%s)", split, len(left_out), source.index.folder)
    return Subset(source, np.setdiff1d(np.arange(len(source)), left_out, assume_unique=True))


def _targets(index: Index, names: tuple[str, ...], split: str) -> np.ndarray:
    """The targets of a split by the classes of the training data; the mapped ones where they are the same."""
    if index.class_names == names:
        return index.targets
    number = {name: target for target, name in enumerate(names)}
    unknown = [name for name in index.class_names if name not in number]
    if unknown:
        raise UserError(
            f"data.{split}: {index.folder} has the class '{unknown[0]}', which data.train has not; expected some "
            f"of its {len(names)} classes"
        )
    return np.array([number[name] for name in index.class_names], dtype=np.int64)[index.targets]


class IndexedSource(Source):
    """The samples of an index.

    Args:
        targets: (N,) int64, by the classes of the training data.
    """

    def __init__(self, index: Index, targets: np.ndarray) -> None:
        self.index, self.reader = index, ShardReader(index)
        self.targets = targets

    def encoded(self, index: int) -> Buffer:
        (found,) = self.encoded_many([index])
        if isinstance(found, CorruptSample):
            raise found
        assert found is not None
        return found

    def encoded_many(self, indices: Sequence[int]) -> list[Buffer | CorruptSample | None]:
        return [
            CorruptSample(index, self.locate(index), str(found)) if isinstance(found, ShardError) else found
            for index, found in zip(indices, self.reader.read_many(indices), strict=True)
        ]

    def decode(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), self, index)

    def locate(self, index: int) -> str:
        offset, shard, length = self.index.rows[index].tolist()
        name = f"{self.index.root}/{self.index.name(shard)}"
        whole = offset == 0 and length == int(self.index.shards[shard]["size"])
        return name if whole else f"{name} bytes {offset} to {offset + length}"

    def __getstate__(self) -> dict[str, object]:
        same = self.targets is self.index.targets  # mapped, and opened again at the other end
        return {"index": self.index, "targets": None if same else self.targets}

    def __setstate__(self, state: dict[str, object]) -> None:
        index, targets = state["index"], state["targets"]
        assert isinstance(index, Index)
        self.__init__(index, index.targets if targets is None else targets)  # type: ignore[misc]
