"""RandAugment on one uint8 image, exactly as the published recipes of DeiT, Swin and ConvNeXt use it.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (arXiv
1909.13719), in the policy that timm calls `rand-m{m}-mstd0.5-inc1`: two of fifteen operations, drawn with
replacement; each is applied with probability 1/2, at a level drawn around the magnitude, and hits harder the
higher the level. Geometric operations interpolate bicubically and fill what they uncover with the mean of
the data. tests/data/test_randaugment.py compares every operation with timm's, pixel by pixel.

torchvision's class of that name is another policy: it always applies both operations, has neither inversion
nor the addition to dark pixels, but an identity, and draws no level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from raytrain_speedup import randomness
from raytrain_speedup.data import augment

LARGEST, STD, PROBABILITY = 10.0, 0.5, 0.5

Fill = int | tuple[int, ...]
Operation = Callable[[Image.Image, float, Fill], Image.Image]


def randaugment(
    image: np.ndarray, magnitude: float, *, mean: Sequence[float], seed: int, epoch: int, index: int
) -> np.ndarray:
    """The image after its operations of this epoch.

    Args:
        image: (H, W, C) uint8, C = 1 or 3.
        magnitude: on timm's scale of 0 to 10. 0 is the identity, as EfficientTrain++ means it; timm's own m0
            still inverts, equalises and posterises.
        mean: of each channel, for pixels in [0, 1]: what uncovered corners are filled with.
        seed, epoch, index: key the randomness.
    """
    if not magnitude:
        return image
    fill = tuple(min(255, round(255 * value)) for value in mean)
    gray = image.shape[2] == 1
    shown = Image.fromarray(image[:, :, 0] if gray else image)
    for name, strength in drawn(magnitude, seed=seed, epoch=epoch, index=index):
        shown = OPERATIONS[name](shown, strength, fill[0] if gray else fill)
    return np.asarray(shown).reshape(image.shape)


def drawn(magnitude: float, *, seed: int, epoch: int, index: int) -> list[tuple[str, float]]:
    """The operations that an image gets, in order, with their strengths: level / 10, of either sign."""
    random = randomness.bits_of_one(index, seed=seed, epoch=epoch, streams=augment.RANDAUGMENT)
    chosen = []
    for which, coin, level, sign in (random[:4], random[4:]):
        if coin >= PROBABILITY * randomness.RANGE:
            continue
        name = _NAMES[which * len(_NAMES) >> randomness.BITS]
        normal = NormalDist(magnitude, STD).inv_cdf((level + 0.5) / randomness.RANGE)
        strength = min(max(normal, 0.0), LARGEST) / LARGEST
        chosen.append((name, -strength if sign >= randomness.RANGE // 2 else strength))
    return chosen


def _affine(image: Image.Image, inverse: tuple[float, ...], fill: Fill) -> Image.Image:
    """Move pixels by the map from the result to the image, x' = a x + b y + c and y' = d x + e y + f."""
    return image.transform(
        image.size, Image.Transform.AFFINE, inverse, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


def _rotate(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return image.rotate(30 * strength, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(image: Image.Image, strength: float, _: Fill) -> Image.Image:
    """Even at level 0 only four bits a channel are kept; at 10 none, and the image is black, which Pillow 13
    refuses to do."""
    lost = 1 << 4 + int(4 * abs(strength))
    return image.point([value - value % lost for value in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, strength: float, _: Fill) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(256 * abs(strength)))


def _solarize_add(image: Image.Image, strength: float, _: Fill) -> Image.Image:
    added = int(110 * abs(strength))
    table = [value + added if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Away from what leaves the image alone, a factor of 1, in either direction."""
    return lambda image, strength, fill: kind(image).enhance(max(0.1, 1 + 0.9 * strength))


OPERATIONS: Mapping[str, Operation] = {
    "AutoContrast": lambda image, strength, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, fill: ImageOps.equalize(image),
    "Invert": lambda image, strength, fill: ImageOps.invert(image),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhanced(ImageEnhance.Sharpness),
    "ShearX": lambda image, strength, fill: _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), fill),
    "ShearY": lambda image, strength, fill: _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), fill),
    "TranslateXRel": lambda image, strength, fill: _affine(
        image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill
    ),
    "TranslateYRel": lambda image, strength, fill: _affine(
        image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill
    ),
}
"""By timm's names. `strength` is in [-1, 1]; what has no two directions takes its absolute value."""

_NAMES = tuple(OPERATIONS)
