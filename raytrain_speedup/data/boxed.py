"""Images with boxes around objects, whatever file these were written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import Buffer, CorruptSample, DataSettings, Source
from raytrain_speedup.data.boxes import FIELDS


class BoxSettings(DataSettings):
    """What all data with boxes have in common."""

    fit: Literal["crop", "stretch"] = Field(
        "stretch",
        description="how an image becomes a square: the centre of it (see eval_crop), or all of it, distorted",
    )
    padding: int | None = Field(
        0,
        ge=0,
        description="reflected border for the crops but the last, in pixels: objects have no boxes in it; null: "
        "image_size / 8",
    )


class BoxedSource(Source):
    """Images, and the objects in each.

    Args:
        images: of the same order.
        boxes: the objects of every image, (n, 5) float32 each, as `Source.boxes` gives them.
        broken: by index, why the objects of an image make no sense.
    """

    def __init__(self, images: Source, boxes: Sequence[np.ndarray], broken: Mapping[int, str]) -> None:
        self.images, self.broken = images, dict(broken)
        self.rows = np.concatenate([*boxes, np.zeros((0, FIELDS))]).astype(np.float32)  # (T, 5)
        self.ends = np.cumsum([len(found) for found in boxes], dtype=np.int64)  # (N,)
        self.targets = images.targets
        self.max_boxes = max(1, *(len(found) for found in boxes)) if boxes else 1

    def boxes(self, index: int) -> np.ndarray:
        if why := self.broken.get(index):
            raise CorruptSample(index, self.locate(index), f"its boxes: {why}")
        return self.rows[self.ends[index - 1] if index else 0 : self.ends[index]]

    def content(self) -> bytes:
        return self.rows.tobytes() + self.ends.tobytes() + repr(sorted(self.broken.items())).encode()

    def subset(self, positions: np.ndarray) -> Source:
        kept = [self.rows[self.ends[i - 1] if i else 0 : self.ends[i]] for i in positions.tolist()]
        broken = {new: self.broken[old] for new, old in enumerate(positions.tolist()) if old in self.broken}
        return BoxedSource(self.images.subset(positions), kept, broken)

    def decode(self, index: int) -> np.ndarray:
        return self.images.decode(index)

    def encoded(self, index: int) -> Buffer | None:
        return self.images.encoded(index)

    def locate(self, index: int) -> str:
        return self.images.locate(index)

    def fixed_size(self) -> tuple[int, int] | None:
        return self.images.fixed_size()

    def prepare(self, memory_limit: float) -> None:
        self.images.prepare(memory_limit)
