"""The one place where the loaders lower the bandwidth of a batch to that of the curriculum's stage."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: int) -> Tensor:
    """(b, C, H, W) float to (b, C, size, size)."""
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
