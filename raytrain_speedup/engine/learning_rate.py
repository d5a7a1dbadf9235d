"""The learning rate as a function of progress alone.

A schedule fixed in steps goes wrong as soon as a method changes the number of steps; progress (the fraction of
the budget spent) is the same for every method, so schedules transfer.
"""

from __future__ import annotations

import math

from raytrain_speedup.config import TrainSettings


def learning_rate(progress: float, train: TrainSettings) -> float:
    """The learning rate at `progress` in [0, 1].

    `one-cycle` rises and falls along cosines as torch's OneCycleLR does (Smith and Topin, arXiv 1708.07120);
    `cosine` rises linearly and falls along a cosine (Loshchilov and Hutter, arXiv 1608.03983).
    """
    start = train.lr / train.start_div
    end = start / train.final_div
    if progress < train.warmup:
        risen = progress / train.warmup
        if train.schedule == "one-cycle":
            risen = _half_cosine(risen)
        return start + (train.lr - start) * risen
    if train.schedule == "constant":
        return train.lr
    fallen = (progress - train.warmup) / (1 - train.warmup)
    return train.lr + (end - train.lr) * _half_cosine(min(fallen, 1.0))


def _half_cosine(fraction: float) -> float:
    """0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * fraction)) / 2
