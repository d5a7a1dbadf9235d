"""Boxes around the objects of masks: the connected regions of some classes, such as cars and pedestrians.

Data for detection where only masks are at hand. Objects of a class that touch one another are one region, and so
are one box; regions of few pixels, of which masks have many at borders, are left out.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy import ndimage

from raytrain_speedup.data.base import CorruptSample, Dataset
from raytrain_speedup.data.boxed import BoxedSource, BoxSettings
from raytrain_speedup.data.boxes import FIELDS
from raytrain_speedup.data.masks import MaskedSource, ParquetMaskFilesSettings

EIGHT_NEIGHBOURS = np.ones((3, 3))
"""Pixels that meet at a corner are connected."""


class ParquetMaskBoxesSettings(BoxSettings, ParquetMaskFilesSettings):
    """Objects are to be found, in images with masks as two columns of Parquet files."""

    source: Literal["parquet-mask-boxes"] = "parquet-mask-boxes"
    objects: tuple[str, ...] = Field(
        min_length=1, description="names of the classes whose connected regions are objects"
    )
    min_area: int = Field(20, ge=1, description="pixels of the smallest region that is one, as stored")

    @model_validator(mode="after")
    def _are_classes(self) -> ParquetMaskBoxesSettings:
        for name in self.objects:
            if name not in self.class_names:
                raise ValueError(f"objects: there is no class {name!r}; expected some of {self.class_names}")
        return self

    def read(self) -> Dataset:
        masked = {split: self.masked(files) for split, files in self.open_splits().items()}
        numbers = [self.class_names.index(name) for name in self.objects]
        sources = {split: _boxed(source, numbers, self.min_area) for split, source in masked.items()}
        return Dataset(sources["train"], sources.get("test"), self.objects, val=sources.get("val"))


def _boxed(source: MaskedSource, numbers: list[int], min_area: int) -> BoxedSource:
    boxes, broken = [], {}
    for index in range(len(source)):
        try:
            boxes.append(mask_boxes(source.mask(index), numbers, min_area))
        except CorruptSample as error:
            boxes.append(np.zeros((0, FIELDS)))
            broken[index] = error.why
    return BoxedSource(source.images, boxes, broken)


def mask_boxes(mask: np.ndarray, numbers: list[int], min_area: int) -> np.ndarray:
    """The objects of a mask (H, W), (n, 5): those of class `numbers[k]` are labelled 1 + k.

    Args:
        min_area: pixels of the smallest region that is an object.
    """
    found = []
    for k, number in enumerate(numbers):
        regions, _ = ndimage.label(mask == number, EIGHT_NEIGHBOURS)
        areas = np.bincount(regions.ravel())[1:]
        for (rows, columns), area in zip(ndimage.find_objects(regions), areas, strict=True):
            if area >= min_area:
                found.append([columns.start, rows.start, columns.stop, rows.stop, 1 + k])
    return np.array(found, dtype=np.float32).reshape(-1, FIELDS)
