"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels that come with the library."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from raytrain_speedup.data.base import ArraySource, Augment, Dataset, DataSettings
from raytrain_speedup.data.splits import balanced_split

_TEST_FRACTION, _TEST_SEED = 0.2, 0


class DigitsSettings(DataSettings):
    """Handwritten digits, without a download; a fifth of each class is the test split."""

    source: Literal["digits"] = "digits"
    image_size: int = Field(16, ge=8, le=256, description="size the 8 x 8 images are enlarged to, in pixels")
    augment: Augment = Field("crop", description="crop: shift by up to `padding`; a flipped digit is none")
    mean: tuple[float, ...] = Field((0.305,), description="mean for normalisation, 0 to 1")
    std: tuple[float, ...] = Field((0.318,), description="std for normalisation, 0 to 1")

    def read(self) -> Dataset:
        images, targets = _images(self.image_size)
        train, test = balanced_split(targets, _TEST_FRACTION, _TEST_SEED)
        return Dataset(
            train=ArraySource(images[train], targets[train], "digits training"),
            test=ArraySource(images[test], targets[test], "digits test"),
            class_names=tuple(str(digit) for digit in range(10)),
            channels=1,
        )


@cache
def _images(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(1797, size, size, 1) uint8 and (1797,) classes, made once in a process."""
    small, targets = _table()
    images = np.round(small * (255 / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in enlarged])[..., None], targets


def _table() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) whole numbers from 0 to 16, and (1797,) classes.

    The library's file is read where it lies: to import scikit-learn takes a second in every process of a sweep.
    """
    library = find_spec("sklearn")
    file = Path(library.origin or "").with_name("datasets") / "data" / "digits.csv.gz" if library else Path()
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target
