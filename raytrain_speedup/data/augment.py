"""Augmentation of whole batches on the training device: shift, flip, crop, cutout, random erasing.

Every function takes its randomness from `randomness.bits` of the samples' positions, so a sample looks the same
in any batch and from any loader. What only moves pixels works on uint8 (b, H, W, C), the rest on normalised
(b, C, H, W).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain_speedup import randomness

# The streams of random bits; two uses never share one.
SHIFT_Y, SHIFT_X, FLIP = 0, 1, 2
CUT_Y, CUT_X = 3, 4
ERASE, ERASE_AREA, ERASE_ASPECT, ERASE_Y, ERASE_X, ERASE_FILL = range(5, 11)
BOX_Y, BOX_X = 11, 12
BOX_ATTEMPTS = 10
BOX_TRIES = range(16, 16 + 2 * BOX_ATTEMPTS)
RANDAUGMENT = range(64, 72)  # for each of two operations: which, whether, at what level, in what direction

_FILLS = 1 << 14

Flip = Literal["random", "alternating"]


def shift_and_flip(
    images: Tensor,
    position: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int,
    padding: int,
    flip: Flip | None,
) -> Tensor:
    """Random crops of the images padded by reflection, flipped by a coin: one gather, no padded copy.

    Args:
        images: (N, H, W, C) uint8, a whole set or one batch.
        position: (b,) int64, which of `images` to take.
        index: (b,) int64, the samples' positions in the data set, which key the randomness.
        padding: largest shift, in pixels.
        flip: by what coin, if any.

    Returns:
        (b, H, W, C) uint8.
    """
    height, width = images.shape[1:3]
    shift = shifts(index, seed=seed, epoch=epoch, padding=padding)
    rows = _reflect(torch.arange(height, device=index.device) + shift[0, :, None], height)
    columns = torch.arange(width, device=index.device).expand(len(index), width)
    if flip is not None:
        flipped = coins(index, seed=seed, epoch=epoch, kind=flip)
        columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    columns = _reflect(columns + shift[1, :, None], width)
    return take_pixels(images, position, rows, columns)


def shifts(index: Tensor, *, seed: int, epoch: int, padding: int) -> Tensor:
    """By how many pixels the window on each image is shifted down and to the right, (2, b) int64."""
    random = randomness.bits(index, seed=seed, epoch=epoch, streams=(SHIFT_Y, SHIFT_X))
    return randomness.below(random, 2 * padding + 1) - padding


def take_pixels(images: Tensor, position: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images[position, rows, columns] for (b, H') rows and (b, W') columns, as one gather of whole pixels."""
    _, height, width, channels = images.shape
    pixel = ((position[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]  # (b, H', W')
    taken = images.view(-1, channels).index_select(0, pixel.flatten())  # (b H' W', C)
    return taken.view(*pixel.shape, channels)


def _reflect(x: Tensor, size: int) -> Tensor:
    x = x.abs()
    return torch.minimum(x, 2 * (size - 1) - x)


def random_boxes(
    index: Tensor, height: Tensor, width: Tensor, *, seed: int, epoch: int, min_scale: float
) -> Tensor:
    """The rectangles of random-resized-crop: area from [min_scale, 1], aspect from [3/4, 4/3].

    As in Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842): ten attempts, then the centre.

    Args:
        height: (b,) int64 sizes of the images, in pixels; `width` likewise.

    Returns:
        (4, b) int64: left, top, width, height.
    """
    tries = randomness.unit(
        randomness.bits(index, seed=seed, epoch=epoch, streams=BOX_TRIES)
    )  # (2 attempts, b)
    area = (height * width) * (min_scale + (1 - min_scale) * tries[:BOX_ATTEMPTS])
    aspect = torch.exp((2 * tries[BOX_ATTEMPTS:] - 1) * torch.tensor(4 / 3).log())
    wide, high = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (wide >= 1) & (high >= 1) & (wide <= width) & (high <= height)  # (attempts, b)
    first = fits.int().argmax(0, keepdim=True)  # (1, b)
    wide, high = wide.gather(0, first)[0], high.gather(0, first)[0]  # (b,)
    random = randomness.bits(index, seed=seed, epoch=epoch, streams=(BOX_Y, BOX_X))
    top = randomness.below(random[0], (height - high + 1).clamp_min(1))
    left = randomness.below(random[1], (width - wide + 1).clamp_min(1))
    found = fits.any(0)
    wide = torch.where(found, wide, torch.minimum(width, height * 4 // 3))
    high = torch.where(found, high, torch.minimum(height, width * 4 // 3))
    left = torch.where(found, left, (width - wide) // 2)
    top = torch.where(found, top, (height - high) // 2)
    return torch.stack([left, top, wide, high])


def crop_and_resize(
    images: Tensor, boxes: Tensor, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Enlargement of one box of each image to the whole: (b, C, H, W) float, boxes (4, b) int64."""
    height, width = images.shape[2:]
    left, top, wide, high = boxes.to(images.dtype)
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = wide / width, (2 * left + wide) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = high / height, (2 * top + high) / height - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def coins(index: Tensor, *, seed: int, epoch: int, kind: Flip = "random") -> Tensor:
    """(b,) bool: which samples are shown flipped.

    Args:
        kind: a coin for every epoch, or `alternating`: one for epoch 0, and from then on every other epoch, so that
            two epochs in a row show all images and their flips (Jordan, arXiv 2404.00498, section 3.6).
    """
    thrown = 0 if kind == "alternating" else epoch
    coin = randomness.below(randomness.bits(index, seed=seed, epoch=thrown, streams=(FLIP,))[0], 2).bool()
    return coin ^ (epoch % 2 == 1) if kind == "alternating" else coin


def flip(x: Tensor, flip: Tensor) -> Tensor:
    """Flip the images of (b, ..., W) that `flip` (b,) names, left to right."""
    return torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)


def cutout(x: Tensor, index: Tensor, *, seed: int, epoch: int, size: int) -> Tensor:
    """Blank a square of `size` pixels around a random centre (DeVries and Taylor, arXiv 1708.04552)."""
    height, width = x.shape[2:]
    random = randomness.bits(index, seed=seed, epoch=epoch, streams=(CUT_Y, CUT_X))
    top = randomness.below(random[0], height) - size // 2
    left = randomness.below(random[1], width) - size // 2
    return x.masked_fill(_rectangle(x, top, left, top + size, left + size), 0.0)


def erase(x: Tensor, index: Tensor, *, seed: int, epoch: int, probability: float) -> Tensor:
    """Random erasing (Zhong et al., arXiv 1708.04896): a rectangle of 2 to 33 % of the area becomes normal
    noise in each pixel, as in the recipes of DeiT and EfficientTrain."""
    height, width = x.shape[2:]
    random = randomness.bits(index, seed=seed, epoch=epoch, streams=range(ERASE, ERASE_FILL + 1))
    coin, fraction, aspect = randomness.unit(random[:3])
    area = (0.02 + (1 / 3 - 0.02) * fraction) * (height * width)
    aspect = torch.exp((2 * aspect - 1) * torch.tensor(1 / 0.3).log())
    high = (area * aspect).sqrt().round().long().clamp(1, height)
    wide = (area / aspect).sqrt().round().long().clamp(1, width)
    top, left = randomness.below(random[3], height - high + 1), randomness.below(random[4], width - wide + 1)
    inside = _rectangle(x, top, left, top + high, left + wide) & (coin < probability).view(-1, 1, 1, 1)
    pixels = x[0].numel()
    bank = _normal_bank(pixels + _FILLS, x.device).to(x.dtype).unfold(0, pixels, 1)
    fill = bank[randomness.below(random[5], _FILLS)].view(x.shape)
    return torch.where(inside, fill, x)


@lru_cache(maxsize=8)
def _normal_bank(length: int, device: torch.device) -> Tensor:
    """Standard normal numbers; a sample's noise is a random stretch of them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(length, generator=generator).to(device)


def _rectangle(x: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """(b, 1, H, W) bool, true inside."""
    row = torch.arange(x.shape[2], device=x.device)[None, :, None]
    column = torch.arange(x.shape[3], device=x.device)[None, None, :]
    top, left, bottom, right = (side[:, None, None] for side in (top, left, bottom, right))
    return ((row >= top) & (row < bottom) & (column >= left) & (column < right))[:, None]
