"""Grids of images and masks as PNG files: what a person would look at after an evaluation."""

from __future__ import annotations

import colorsys
import io
import math

import torch
from PIL import Image
from torch import Tensor

from raytrain_speedup.data.base import IGNORE_INDEX

_GOLDEN = (math.sqrt(5) - 1) / 2


def image_grid(images: Tensor, columns: int) -> bytes:
    """Images (N, C, H, W) uint8 in rows of `columns`, as a PNG file."""
    from torchvision.utils import make_grid  # torchvision is half of this package's import time

    grid = make_grid(images.cpu(), nrow=columns, padding=1)
    file = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


def mask_grid(images: Tensor, *masks: Tensor) -> bytes:
    """A row of images (N, C, H, W) uint8, and below it a row for each of the masks (N, H, W), in colours."""
    rows = [images.cpu().expand(-1, 3, -1, -1), *(coloured(mask.cpu()) for mask in masks)]
    return image_grid(torch.cat(rows), columns=len(images))


def coloured(mask: Tensor) -> Tensor:
    """Classes (N, H, W) as (N, 3, H, W) uint8: hues a golden section apart, so that neighbours differ; void is
    black."""
    colours = [
        colorsys.hsv_to_rgb(k * _GOLDEN % 1, 0.55 + 0.4 * (k % 2), 0.95 - 0.25 * (k % 3))
        for k in range(IGNORE_INDEX)
    ]
    palette = (torch.tensor([*colours, (0.0, 0.0, 0.0)]) * 255).to(torch.uint8)
    return palette[mask.long()].permute(0, 3, 1, 2)
