"""Random crops, flips and zooms of a whole batch on its device, one draw per image.

Every one of them resamples rows and columns independently, so it is `R @ image @ C.T` with one small
interpolation matrix per image and side: two batched matrix products, no gather, no loop, no synchronisation.
The backward pass is two products as well, and deterministic on a GPU, where that of an indexed gather or of
`grid_sample` adds atomically. Shifts and flips by whole pixels are exact: their matrices hold zeros and ones,
and 0..255 is exact even in bfloat16.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raytrain_speedup.settings import Settings

_LOG_RATIO = math.log(4 / 3)


class Augment(Settings):
    """How a batch of images is varied before a network sees it."""

    crop: int = Field(
        4, ge=0, description="zero padding in pixels around an image before a random crop back to size"
    )
    flip: bool = Field(True, description="flip each image with probability 1/2")
    zoom: float = Field(
        1.0,
        gt=0,
        le=1,
        description="smallest fraction of the area that a random resized crop keeps; 1 turns it off",
    )

    @model_validator(mode="after")
    def _one_kind_of_crop(self) -> Augment:
        if self.crop and self.zoom < 1:
            raise ValueError("an image is cropped by `crop` or by `zoom`: set crop to 0 with a zoom below 1")
        return self


def augment(images: Tensor, how: Augment, rng: torch.Generator) -> Tensor:
    """Vary each image (B, C, H, W), floating point of any scale, with its own draw; outside an image is 0."""
    batch, _, height, width = images.shape
    if how == Augment(crop=0, flip=False, zoom=1.0):
        return images

    def uniform() -> Tensor:
        return torch.rand(batch, generator=rng, device=images.device)

    scale_y = scale_x = torch.ones(batch, device=images.device)
    if how.zoom < 1:
        area = how.zoom + (1 - how.zoom) * uniform()
        ratio = torch.exp(_LOG_RATIO * (2 * uniform() - 1))
        scale_y, scale_x = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
        top, left = height * (1 - scale_y) * uniform(), width * (1 - scale_x) * uniform()
    else:
        top, left = ((uniform() * (2 * how.crop + 1)).floor() - how.crop for _ in range(2))
    if how.flip:
        flipped = uniform() < 0.5
        left = torch.where(flipped, left + width * scale_x, left)
        scale_x = torch.where(flipped, -scale_x, scale_x)
    rows_BHH = _resampling(top, scale_y, height, clamp=how.zoom < 1)
    cols_BWW = _resampling(left, scale_x, width, clamp=how.zoom < 1)
    return rows_BHH.to(images.dtype).unsqueeze(1) @ images @ cols_BWW.to(images.dtype).mT.unsqueeze(1)


def _resampling(start: Tensor, scale: Tensor, size: int, *, clamp: bool) -> Tensor:
    """(B, size, size): row i reads the input at start + scale * (i + 1/2), linearly between pixel centres."""
    pixel = torch.arange(size, device=start.device)
    source = start[:, None] + scale[:, None] * (pixel + 0.5) - 0.5
    if clamp:  # a zoom ends at the border of the image, where a shift goes on into the padding
        source = source.clamp(0, size - 1)
    return (1 - (source[:, :, None] - pixel).abs()).relu()
