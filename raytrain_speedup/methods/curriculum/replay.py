"""Showing a sample several times before reading a new one, where reading is what holds the training up.

EfficientTrain++ (Wang et al., TPAMI 2024, https://arxiv.org/abs/2405.08768): every fresh batch enters a
first-in first-out buffer, and the training batch is the fresh one plus (r - 1) times as many samples drawn
from the buffer; each sample is then shown r times on average. The reference stores augmented images in half
precision and loses them with every stage. Here the loaders keep samples as they were before any augmentation:
images in device memory by their index, others as the files they came in (`raytrain_speedup.data.worker_loader`), a
third of the memory. So they are augmented anew each time and serve every stage, but a file is decoded for
every showing: replay spares the storage, and what spares the decoders is the kernel `resize`, which takes
JPEGs straight to the size of the stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytrain_speedup.randomness import philox
from raytrain_speedup.settings import UserError


class ReplayBuffer:
    """The last samples read, as many as the memory holds, on the device they came on.

    A sample is whatever tensors are pushed for it (pixels, index, weight): they stay together.
    The content depends on the last `capacity` samples pushed and on nothing else, and a draw on the content,
    the seed, the epoch and the step; so a run resumes from `state_dict`, or by pushing those samples again.

    Args:
        max_bytes: bound on the memory of the buffer.
        seed: of the draws; give each rank its own.
        max_samples: bound on their number: holding a whole data set more than once serves nothing.
        beside: bytes that whoever pushes a sample keeps of it elsewhere; they count.
    """

    def __init__(self, max_bytes: int, *, seed: int, max_samples: int | None = None, beside: int = 0) -> None:
        self.max_bytes = max_bytes
        self.max_samples = max_samples
        self.beside = beside
        self.seed = seed
        self.capacity = 0  # samples; known with the first batch
        self._slots: dict[str, Tensor] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return min(self._pushed, self.capacity)

    @property
    def nbytes(self) -> int:
        """Memory the buffer holds; allocated whole with the first batch."""
        return sum(slots.nbytes for slots in self._slots.values())

    def extend(self, fresh: Mapping[str, Tensor], replay: int, *, epoch: int, step: int) -> dict[str, Tensor]:
        """The training batch: `fresh` (b samples, which enter the buffer), then b (replay - 1) drawn ones.

        Raises:
            UserError: if the buffer cannot hold a single sample.
        """
        self.push(fresh)
        size = len(next(iter(fresh.values())))
        drawn = self._draw(size * (replay - 1), epoch, step)
        return {name: torch.cat([tensor, drawn[name]]) for name, tensor in fresh.items()}

    def push(self, fresh: Mapping[str, Tensor]) -> None:
        """Let samples in; the oldest ones make place."""
        if not self._slots:
            self._allocate(fresh)
        size = len(next(iter(fresh.values())))
        kept = min(size, self.capacity)
        start = (self._pushed + size - kept) % self.capacity
        until_wrap = min(kept, self.capacity - start)
        for name, slots in self._slots.items():
            newest = fresh[name][size - kept :]
            slots[start : start + until_wrap] = newest[:until_wrap]
            slots[: kept - until_wrap] = newest[until_wrap:]
        self._pushed += size

    def copy(self) -> ReplayBuffer:
        """Another one that holds the same samples, and draws the same."""
        other = ReplayBuffer(self.max_bytes, seed=self.seed, max_samples=self.max_samples, beside=self.beside)
        other.load_state_dict(self.state_dict())
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The samples held, from the oldest to the newest."""
        slots = torch.from_numpy(self._slots_by_age()[::-1].copy())
        return {name: held[slots.to(held.device)] for name, held in self._slots.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold the samples of `state_dict` and no others, on the device they are on."""
        self._slots, self._pushed = {}, 0
        if state:
            self.push(state)

    def _allocate(self, fresh: Mapping[str, Tensor]) -> None:
        tensors = fresh.values()
        sample_bytes = self.beside + sum(t.element_size() * math.prod(t.shape[1:]) for t in tensors)
        self.capacity = self.max_bytes // sample_bytes
        if self.capacity == 0:
            raise UserError(
                f"a replay buffer of {self.max_bytes} bytes cannot hold one sample of {sample_bytes}; "
                "expected room for several batches"
            )
        if self.max_samples is not None:
            self.capacity = min(self.capacity, self.max_samples)
        self._slots = {
            name: torch.empty((self.capacity, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
            for name, tensor in fresh.items()
        }

    def _slots_by_age(self) -> NDArray[np.int64]:
        return (self._pushed - 1 - np.arange(len(self))) % self.capacity if self.capacity else np.arange(0)

    def _draw(self, count: int, epoch: int, step: int) -> dict[str, Tensor]:
        """`count` samples, uniformly and with replacement; chosen by age, so slots may lie anywhere."""
        age = philox((self.seed, 0), (step, epoch)).integers(max(1, len(self)), size=count)
        slots = torch.from_numpy((self._pushed - 1 - age) % self.capacity)
        return {
            name: held.index_select(0, slots.to(held.device, non_blocking=True))
            for name, held in self._slots.items()
        }
