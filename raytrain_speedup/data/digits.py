"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels that come with the library."""

from __future__ import annotations

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
        from sklearn.datasets import load_digits  # takes a second to import, and only digits need it

        digits = load_digits()
        images = np.stack([_enlarged(image, self.image_size) for image in digits.images])[..., None]
        train, test = balanced_split(digits.target, _TEST_FRACTION, _TEST_SEED)
        return Dataset(
            train=ArraySource(images[train], digits.target[train], "digits training"),
            test=ArraySource(images[test], digits.target[test], "digits test"),
            class_names=tuple(str(name) for name in digits.target_names),
            channels=1,
        )


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """(8, 8) floats from 0 to 16 as (size, size) uint8."""
    picture = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
