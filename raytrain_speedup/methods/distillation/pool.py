"""The pool of synthetic images: a bounded ring of uint8 tensors on the training device.

56,320 CIFAR images are 173 MB, less than most models' activations, so nothing is written to a disk between
two calls and nothing is decoded. A pool above `device_bytes` (ImageNet: 150 KB an image) lives in pinned host
memory and only the sampled batch travels. What is drawn is a function of counters, so that a resumed run sees
the batches that an uninterrupted one sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raytrain_speedup.randomness import SAMPLE, torch_generator
from raytrain_speedup.settings import UserError


class Pool:
    """A ring of at most `capacity` images; the oldest give way to the newest.

    Args:
        capacity: images kept.
        image_shape: (C, H, W).
        device: where sampled batches are needed.
        device_bytes: a pool larger than this stays in host memory (pinned, where the device is a GPU).
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        *,
        device: torch.device | str = "cpu",
        device_bytes: int = 8 << 30,
    ) -> None:
        self.device = torch.device(device)
        fits = capacity * math.prod(image_shape) <= device_bytes
        where = self.device if fits else torch.device("cpu")
        self._pinned = where != self.device
        self._images = torch.empty(
            (capacity, *image_shape), dtype=torch.uint8, device=where, pin_memory=self._pinned
        )
        self._next = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        """The most images the pool holds."""
        return len(self._images)

    def add(self, images: Tensor) -> None:
        """Append images (B, C, H, W): uint8, or floating point in [0, 1], which is rounded to 8 bits."""
        images = to_uint8(images)[-self.capacity :]
        first = min(len(images), self.capacity - self._next)
        self._images[self._next : self._next + first].copy_(images[:first])
        self._images[: len(images) - first].copy_(images[first:])
        self._next = (self._next + len(images)) % self.capacity
        self._count = min(self._count + len(images), self.capacity)

    def sample(self, batch: int, *key: int) -> Tensor:
        """`batch` images drawn with replacement, uint8 (batch, C, H, W) on the training device.

        Args:
            key: what decides the draw, such as (seed, rank, step).
        """
        rng = torch_generator(self._images.device, SAMPLE, *key)
        age = torch.randint(self._count, (batch,), generator=rng, device=rng.device)
        # Counted from the oldest image: where the ring stands is another place after a resume.
        index = (age + self._next - self._count) % self.capacity
        if not self._pinned:
            return self._images.index_select(0, index)
        out = torch.empty((batch, *self._images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        return torch.index_select(self._images, 0, index, out=out).to(self.device, non_blocking=True)

    def newest(self, count: int) -> Tensor:
        """The last `count` images, oldest first, uint8 beside the pool: what an image grid shows."""
        count = min(count, self._count)
        index = torch.arange(self._next - count, self._next) % self.capacity
        return self._images[index.to(self._images.device)]

    def state_dict(self) -> dict[str, Any]:
        """The images on the CPU, oldest first: independent of the capacity and of where the ring stands."""
        return {"images": self.newest(self._count).cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the images of `state_dict`; a smaller pool keeps the newest.

        Raises:
            UserError: if they have another shape.
        """
        images = state["images"]
        if images.shape[1:] != self._images.shape[1:]:
            found, expected = tuple(images.shape[1:]), tuple(self._images.shape[1:])
            raise UserError(f"checkpoint: its pool holds images of shape {found}; this run needs {expected}")
        self._next = self._count = 0
        self.add(images)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, rounded to the nearest level; uint8 stays as it is."""
    if images.dtype == torch.uint8:
        return images
    return images.detach().float().mul(255).round_().clamp_(0, 255).to(torch.uint8)
