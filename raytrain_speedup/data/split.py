"""Which samples are set aside: a rule of the labels and a seed, class by class, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch

from raytrain_speedup import randomness


def balanced_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples that stay and of those set aside, both ascending.

    Every class gives its own fraction, rounded so that the total is `round(fraction * N)`, but never its last
    sample; which of its samples go is decided by a hash of their positions.

    Args:
        targets: (N,) int64 classes, not negative.
        fraction: of the samples to set aside, in [0, 1).
    """
    counts = np.bincount(targets)
    quota = _apportion(counts, fraction)
    random = randomness.bits(torch.arange(len(targets)), seed=seed, epoch=0, streams=[0])[0].numpy()
    order = np.lexsort((random, targets))
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(targets), dtype=np.int64)
    rank[order] = np.arange(len(targets)) - starts[targets[order]]
    aside = rank < quota[targets]
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Whole numbers near `fraction * counts` that sum to the rounded total, by largest remainders."""
    exact = counts * fraction
    quota = np.floor(exact).astype(np.int64)
    missing = round(float(fraction * counts.sum())) - int(quota.sum())
    able = np.flatnonzero(quota + 1 < counts)
    quota[able[np.argsort((quota - exact)[able], kind="stable")[:missing]]] += 1
    return quota
