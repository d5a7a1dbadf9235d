"""The order of an epoch for storage that is far or slow: stretch by stretch, and shuffled within a window.

Samples that lie beside each other on the storage are a stretch. An epoch goes through the stretches in random
order, and each sample is moved back by up to `window` places: so at any time reads are within the few stretches
that make up a window, and a batch holds samples of all of them. What is shown, and its weight, stays what the
pruner has planned. (The shuffle buffer of WebDataset's readers does the same sample by sample.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner
from raytrain_speedup.methods.pruning.draw import WINDOW, generator
from raytrain_speedup.methods.pruning.wrapped import WrappedPruner


def in_windows(plan: EpochPlan, stretch_N: np.ndarray, window: int, *, seed: int, epoch: int) -> EpochPlan:
    """A plan in another order.

    Args:
        stretch_N: (N,) whole numbers from 0, in which stretch of the storage each sample lies.
        window: samples that are shuffled among each other.
        seed, epoch: of the random order.
    """
    random = generator(seed, epoch, WINDOW)
    turn = random.permutation(int(stretch_N.max(initial=-1)) + 1)
    order = _sorted_by(turn[stretch_N[plan.indices.numpy()]])  # shuffled within, as it comes
    place = np.arange(plan.kept) + random.integers(0, window + 1, plan.kept)
    order_M = torch.from_numpy(order[_sorted_by(place)])
    return replace(plan, indices=plan.indices[order_M], weights=plan.weights[order_M])


def _sorted_by(key_M: np.ndarray) -> np.ndarray:
    """The stable order of keys below 2^32, (M,) int64: a sort of words that carry the place in their low bits takes
    a quarter of the time of an argsort."""
    words = key_M.astype(np.uint64) << 32
    words |= np.arange(len(key_M), dtype=np.uint64)
    words.sort()
    words &= 2**32 - 1
    return words.view(np.int64)


class WindowedPruner(WrappedPruner):
    """A pruner whose plans are in windows.

    Args:
        stretch_N, window: as of `in_windows`.
    """

    def __init__(self, pruner: Pruner, stretch_N: np.ndarray, window: int) -> None:
        super().__init__(pruner)
        self._stretch_N, self._window = stretch_N, window

    def _plan(self, epoch: int) -> EpochPlan:
        plan = super()._plan(epoch)
        return in_windows(plan, self._stretch_N, self._window, seed=self.seed, epoch=epoch)
