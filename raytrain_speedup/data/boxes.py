"""Boxes around objects, for whole batches: they move with their images.

The objects of b images are (b, M, 5) float32: left, top, right and bottom in pixels of the image, whose corner is
(0, 0), and the label, which is 1 + the class. Images have different numbers of them; a row of zeros is none. A
label below 0 is a crowd: many objects of a class in one box, neither learnt nor judged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raytrain_speedup.methods.curriculum.base import Kernel

FIELDS = 5
"""Numbers of a box: its sides, and its label."""

MIN_VISIBLE = 0.25
"""Of an object's box, for what is left of it after a crop to be an object still."""


def move_boxes(boxes_bM5: Tensor, scale_b2: Tensor, offset_b2: Tensor, size: int) -> Tensor:
    """Take every x to scale * x + offset, every y likewise, and cut off what is outside of `size` x `size` pixels.

    A box of which less than `MIN_VISIBLE` is left becomes a row of zeros.
    """
    corners = boxes_bM5[..., :4].unflatten(-1, (2, 2))  # (b, M, 2, 2): a corner, its x and y
    moved = corners * scale_b2[:, None, None] + offset_b2[:, None, None]
    shown = moved.clamp(0, size)
    whole, visible = ((box[..., 1, :] - box[..., 0, :]).prod(-1) for box in (moved, shown))  # (b, M) areas
    kept = (visible > 0) & (visible >= MIN_VISIBLE * whole)
    return torch.cat([shown.flatten(-2), boxes_bM5[..., 4:]], -1) * kept[..., None]


def flip_boxes(boxes_bM5: Tensor, flip: Tensor, size: int) -> Tensor:
    """Flip the boxes of the images that `flip` (b,) names left to right; images are `size` pixels wide."""
    left, top, right, bottom, label = boxes_bM5.unbind(-1)
    flipped = torch.stack([size - right, top, size - left, bottom, label], -1)
    return torch.where(flip[:, None, None] & (label != 0)[..., None], flipped, boxes_bM5)


def reduce_boxes(boxes_bM5: Tensor, size: int, reduced: int, kernel: Kernel) -> Tensor:
    """Of images of `size` pixels, as a curriculum's kernel reduces these to `reduced` pixels.

    The kernel `fourier` keeps the centre of the first pixel in its place, where the others keep the image's corner
    (`methods/curriculum/crop.py`): what it shows lies up to half a pixel to the right of theirs, and below.
    """
    if reduced == size:
        return boxes_bM5
    scale = boxes_bM5.new_full((1, 2), reduced / size)
    return move_boxes(boxes_bM5, scale, (1 - scale) / 2 if kernel == "fourier" else 0 * scale, reduced)
