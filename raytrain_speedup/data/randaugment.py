"""RandAugment (Cubuk et al., arXiv 1909.13719) on one uint8 image, with torchvision's operations."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from raytrain_speedup.data import augment, noise

if TYPE_CHECKING:
    from torchvision.transforms import v2

_OPERATIONS, _BINS, _LARGEST, _DEVIATION = 2, 31, 10.0, 0.5


def randaugment(image: np.ndarray, magnitude: float, *, seed: int, epoch: int, index: int) -> np.ndarray:
    """Two random operations at a magnitude drawn around `magnitude`, like timm's `rand-m{m}-mstd0.5-inc1`.

    Args:
        image: (H, W, 3) uint8.
        magnitude: on timm's scale of 0 to 10; 0 is the identity.
    """
    if not magnitude:
        return image
    key = noise.key(seed, epoch, augment.RANDAUGMENT) ^ noise.key(index, 0, augment.RANDAUGMENT)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.random.default_generator.manual_seed(key)
        drawn = magnitude + _DEVIATION * torch.randn(()).item()
        level = round(min(max(drawn, 0.0), _LARGEST) * (_BINS - 1) / _LARGEST)
        return _transform(level)(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()


@lru_cache(maxsize=_BINS)
def _transform(level: int) -> v2.RandAugment:
    from torchvision.transforms import v2  # slow to import, and few runs need it

    return v2.RandAugment(_OPERATIONS, magnitude=level, num_magnitude_bins=_BINS)
