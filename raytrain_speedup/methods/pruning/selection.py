"""What an epoch shows of the samples that may be dropped, and what the shown ones weigh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raytrain_speedup.methods.pruning import draw

MAX_WEIGHT = 10.0
"""Most a survivor may weigh, the published cap: one sample that stands for more makes the gradient too noisy."""


@dataclass(frozen=True)
class Selection:
    """What a pruned epoch shows.

    Attributes:
        codes: (N,) uint8 as in `draw.shuffled_plan`; None for all samples at weight 1.
        weights: the weight of each code.
        stats: metrics for the log.
        droppable: how many samples it could have dropped at most, with the losses as they are.
    """

    codes: NDArray[np.uint8] | None = None
    weights: tuple[float, ...] = (0.0, 1.0)
    stats: Mapping[str, float] = field(default_factory=dict)
    droppable: int = 0

    @property
    def dropped(self) -> int:
        """How many samples are not shown."""
        return 0 if self.codes is None else len(self.codes) - int(np.count_nonzero(self.codes))


def thin(
    bands: Sequence[tuple[NDArray[np.bool_], int]],
    stats: Mapping[str, float],
    random: np.random.Generator,
    *,
    droppable: int,
) -> Selection:
    """Drop an exact number of samples of each band at random; the survivors stand for the whole band.

    Args:
        bands: disjoint masks (N,) of eligible samples, and how many of each are dropped (never all of them).
        stats, droppable: handed through.
        random: the generator of the survivors.

    A survivor of E eligible samples of which K are kept weighs E / K, the realised ratio. K * (E / K) = E, so
    the weights of the plan sum to N; each eligible sample is kept with probability K / E, so the weighted sum
    over the plan is an exactly unbiased estimate of the sum over the data. Weights are rounded once, to
    float32: a relative error of at most 2^-24.
    """
    codes = np.full(len(bands[0][0]), draw.FULL, dtype=np.uint8)
    weights = [0.0, 1.0]
    for eligible, drop in bands:
        count = int(np.count_nonzero(eligible))
        band = np.uint8(len(weights) - draw.FULL)
        codes += eligible * band  # `codes[eligible] = ...` would take several times as long
        codes *= ~draw.draw(eligible, drop, random)
        weights.append(count / (count - drop) if drop else 1.0)
    return Selection(codes, tuple(weights), stats, droppable)


def only(shown: NDArray[np.bool_], stats: Mapping[str, float], *, droppable: int) -> Selection:
    """Show the samples marked in `shown` (N,) at weight 1 and no others."""
    return Selection(shown.astype(np.uint8), stats=stats, droppable=droppable)


def lowest(
    scores: NDArray[np.float32], usable: NDArray[np.bool_], count: int, random: np.random.Generator
) -> tuple[NDArray[np.bool_], np.float32]:
    """Mask (N,) of the `count` usable samples of the lowest scores, and the highest score among them.

    Ties for the last places are drawn at random: many samples of a trained network share the loss 0.
    """
    values = scores.copy() if usable.all() else scores[usable]
    values.partition(count - 1)
    last = values[count - 1]
    mask = (scores < last) & usable
    mask |= draw.draw((scores == last) & usable, count - int(np.count_nonzero(mask)), random)
    return mask, last


def easiest(
    hardness: NDArray[np.float32], among: NDArray[np.bool_], count: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Mask (N,) of the `count` samples of the lowest hardness among those marked; ties are drawn."""
    return lowest(hardness, among, count, random)[0] if count else np.zeros_like(among)


def drop_count(ratio: float, eligible: int) -> int:
    """How many of `eligible` samples a ratio drops: the nearest number that leaves one survivor for
    `MAX_WEIGHT` of them."""
    return min(round(ratio * eligible), eligible - math.ceil(eligible / MAX_WEIGHT))
