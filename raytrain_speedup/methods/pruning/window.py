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
    order = np.argsort(turn[stretch_N[plan.indices.numpy()]], kind="stable")  # shuffled within, as it comes
    place = np.arange(plan.kept) + window * random.random(plan.kept)
    order_M = torch.from_numpy(order[np.argsort(place)])
    return replace(plan, indices=plan.indices[order_M], weights=plan.weights[order_M])


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
