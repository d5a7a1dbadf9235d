"""Samples by an index: in tar files, Parquet files or loose ones, here or in a store, each by its own bytes."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import (
    Augment,
    Buffer,
    CorruptSample,
    Dataset,
    FilesSettings,
    Source,
    Window,
    leaving_out,
)
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.index.range_cache import RangeCache
from raytrain_speedup.data.index.reading import ShardError, ShardReader
from raytrain_speedup.data.index.shards import QUARANTINE, Index, open_index
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_LOOKED_AT = 64  # stretches, for their classes


class IndexedSettings(FilesSettings):
    """Indexes that `speedup data index` made, one for each split; without one for test, `test_fraction`."""

    source: Literal["index"] = "index"
    train: Path = Field(description="index of the training data (`speedup data index SRC -o INDEX`)")
    test: Path | None = Field(
        None,
        description="index of the test data; read once, at the end; default: `test_fraction` of the training data",
    )
    val: Path | None = Field(
        None, description="index of the validation data; default: `val_fraction` of the training data"
    )
    image_size: int = Field(224, ge=4, le=2048, description="image size the network sees, in pixels")
    augment: Augment = Field(
        "random-resized-crop", description="crop: shift by up to `padding`; crop-flip: and horizontal flip"
    )

    window: int = Field(
        0,
        ge=0,
        description="samples that are shuffled among each other, so that reads are close to each other: an epoch "
        "then goes through the shards in random order; 0: any sample may follow any other",
    )
    cache: Path | None = Field(
        None, description="folder on a disk of the node where samples are kept that were read once"
    )
    cache_gb: float = Field(100.0, gt=0, description="most that `cache` may take, in GB (1e9 bytes)")

    def read(self) -> Dataset:
        folders = {"train": self.train, "test": self.test, "val": self.val}
        indexes = {split: open_index(folder, f"data.{split}") for split, folder in folders.items() if folder}
        names = indexes["train"].class_names
        sources = {
            split: self._source(index, _targets(index, names, split)) for split, index in indexes.items()
        }
        left_out = {split: _quarantined(index, split) for split, index in indexes.items()}
        _warn_of_few_classes(sources["train"])
        test, val = (
            leaving_out(sources[split], left_out[split]) if split in sources else None
            for split in ("test", "val")
        )
        return Dataset(sources["train"], test, names, val=val, left_out=left_out["train"])

    def _source(self, index: Index, targets: np.ndarray) -> IndexedSource:
        cache = RangeCache(self.cache.absolute(), index, int(self.cache_gb * 1e9)) if self.cache else None
        return IndexedSource(index, targets, cache=cache, window=self.window)


def _quarantined(index: Index, split: str) -> np.ndarray:
    """The rows that an index's quarantine list names; says how many those are."""
    left_out = index.quarantined()
    if len(left_out) == len(index.rows) > 0:
        raise UserError(
            f"data.{split}: all {len(left_out)} samples of {index.folder} are in its {QUARANTINE}; expected some "
            "that are not"
        )
    if len(left_out):
        log.info("data.%s: %d samples in quarantine are left out (%s)", split, len(left_out), index.folder)
    return left_out


def _warn_of_few_classes(source: Source) -> None:
    """Say so where the stretches of a window are sorted by class: every batch would be of a few."""
    window = source.window()
    if window is None:
        return
    stretches = int(window.stretch.max(initial=-1)) + 1
    chosen = np.unique(np.linspace(0, stretches - 1, min(stretches, _LOOKED_AT)).astype(np.int64))
    here = np.isin(window.stretch, chosen)
    pairs = np.unique(np.stack([window.stretch[here], source.targets[here]]), axis=1)
    found, size = pairs.shape[1] / len(chosen), np.count_nonzero(here) / len(chosen)
    classes = int(source.targets.max(initial=0)) + 1
    expected = classes * (1 - (1 - 1 / classes) ** size)  # of so many samples drawn at random
    if found - 1 < (expected - 1) / 2:
        log.warning(
            "data.window: %.0f neighbours are of %.1f classes, where shuffled ones would be of %.1f, and so are "
            "batches: expected shuffled tar files, as `speedup data pack` makes of them",
            size,
            found,
            expected,
        )


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
        cache: where samples are kept that were read once.
        window: samples that an epoch shuffles among each other; 0: all of them.
    """

    def __init__(
        self, index: Index, targets: np.ndarray, *, cache: RangeCache | None = None, window: int = 0
    ) -> None:
        self.index, self.reader = index, ShardReader(index, cache)
        self.targets, self._window = targets, window

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

    @property
    def bytes_read(self) -> int:
        """As `ShardReader.bytes_read`."""
        return self.reader.bytes_read

    def decode(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), self, index)

    def locate(self, index: int) -> str:
        offset, shard, length = self.index.rows[index].tolist()
        name = f"{self.index.root}/{self.index.name(shard)}"
        whole = offset == 0 and length == int(self.index.shards[shard]["size"])
        if self.index.packed is not None:  # others have bytes there too
            first = bisect_left(self.index.rows, shard, key=lambda row: row["shard"])  # copies no column
            name += f" row {index - first}"
        return name if whole else f"{name} bytes {offset} to {offset + length}"

    def window(self) -> Window | None:
        """Stretches are shards, or an eighth of a window where shards are longer: a batch is to see several."""
        if not self._window:
            return None
        rows, most = self.index.rows, max(1, self._window // 8)
        order = np.lexsort((rows["offset"], rows["shard"]))
        shard = rows["shard"][order]
        first = np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]])
        begins = np.repeat(first, np.diff(np.r_[first, len(order)]))
        stretch = np.empty(len(order), dtype=np.int64)
        stretch[order] = np.cumsum((np.arange(len(order)) - begins) % most == 0) - 1
        return Window(stretch, self._window)

    def __getstate__(self) -> dict[str, Any]:
        same = self.targets is self.index.targets  # mapped, and opened again at the other end
        targets = None if same else self.targets
        return {"index": self.index, "targets": targets, "cache": self.reader.cache, "window": self._window}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["targets"] is None:
            state["targets"] = state["index"].targets
        self.__init__(**state)  # type: ignore[misc]
