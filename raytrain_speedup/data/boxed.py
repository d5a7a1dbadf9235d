"""Images with boxes around objects, whatever file these were written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import CorruptSample, DataSettings, Source, SourceOfImages
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


class BoxedSource(SourceOfImages):
    """Images, and the objects in each.

    Args:
        images: of the same order.
        boxes: the objects of every image, (n, 5) float32 each, as `Source.boxes` gives them.
        broken: by index, why the objects of an image make no sense.
    """

    def __init__(self, images: Source, boxes: Sequence[np.ndarray], broken: Mapping[int, str]) -> None:
        super().__init__(images)
        self.broken = dict(broken)
        self.rows = np.concatenate([*boxes, np.zeros((0, FIELDS))]).astype(np.float32)  # (T, 5)
        counts = [len(found) for found in boxes]
        self.bounds = np.cumsum([0, *counts])  # (N + 1,): an image's rows are between two of them
        self.max_boxes = max([1, *counts])

    def boxes(self, index: int) -> np.ndarray:
        if why := self.broken.get(index):
            raise CorruptSample(index, self.locate(index), f"its boxes: {why}")
        return self.rows[self.bounds[index] : self.bounds[index + 1]]

    def content(self) -> bytes:
        return self.rows.tobytes() + self.bounds.tobytes() + repr(sorted(self.broken.items())).encode()

    def subset(self, positions: np.ndarray) -> Source:
        kept = positions.tolist()
        rows = [self.rows[self.bounds[i] : self.bounds[i + 1]] for i in kept]
        broken = {new: self.broken[old] for new, old in enumerate(kept) if old in self.broken}
        return BoxedSource(self.images.subset(positions), rows, broken)
