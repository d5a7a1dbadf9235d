"""Grids of images, masks and boxes as PNG files: what a person would look at after an evaluation."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import torch
from PIL import Image, ImageDraw
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


def box_grid(images: Tensor, *boxes: Tensor) -> bytes:
    """For each of the boxes (N, M, 5), rows as `data/boxes.py` says, a row of images (N, C, H, W) uint8 with their
    outlines in the colours of their classes."""
    plain = images.cpu().expand(-1, 3, -1, -1)
    rows = [torch.stack([_outlined(*both) for both in zip(plain, some.cpu(), strict=True)]) for some in boxes]
    return image_grid(torch.cat(rows), columns=len(images))


def _outlined(image: Tensor, boxes: Tensor) -> Tensor:
    """(3, H, W) uint8 with boxes (M, 5) drawn."""
    drawing = Image.fromarray(image.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(drawing)
    for *sides, label in boxes[boxes[:, 4] > 0].tolist():
        pen.rectangle(sides, outline=tuple(_palette()[int(label) - 1].tolist()))
    return torch.from_numpy(np.array(drawing)).permute(2, 0, 1)


def coloured(mask: Tensor) -> Tensor:
    """Classes (N, H, W) as (N, 3, H, W) uint8."""
    return _palette()[mask.long()].permute(0, 3, 1, 2)


def _palette() -> Tensor:
    """(256, 3) uint8, a colour for each class: hues a golden section apart, so that neighbours differ; void is
    black."""
    colours = [
        colorsys.hsv_to_rgb(k * _GOLDEN % 1, 0.55 + 0.4 * (k % 2), 0.95 - 0.25 * (k % 3))
        for k in range(IGNORE_INDEX)
    ]
    return (torch.tensor([*colours, (0.0, 0.0, 0.0)]) * 255).to(torch.uint8)
