"""An error spent over several looks: the level of each, such that the chance of any erring is the error.

All looks use the same nominal level (Pocock 1977). With a few seeds the statistics are Student's; where the truth
lies on the boundary, their joint distribution depends on neither spread nor margin, so a level can be had before
anything is known: by integration if paired, by a simulation that is always the same if unpaired.

Levels that grow with the seeds were tried (n / 12): power .95 instead of .93 at margin .3 and sd .17, for half a
seed more. O'Brien and Fleming's are out of reach at three seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import stdtr, stdtrit

from raytrain_speedup.engine.statistics.estimate import Array, Estimate, Pairing

POINTS = 400
"""Of the integration, whose error is then met to within two thousandths of itself."""
PATHS = 2**17
"""Simulated confirmations. Each serves both tails: an error of 5 % is met to within .04 % (standard error)."""
SPREADS = (1.0, 2.0, 4.0)
"""Standard std of the method over that of the baseline: unpaired levels depend on it. The worst counts, and
the other way round is no worse."""


@cache
def look_level(error: float, looks: tuple[int, ...], pairing: Pairing, baseline_seeds: int = 0) -> float:
    """One-sided level of each look.

    Args:
        error: chance of any look erring, at most 0.1.
        looks: numbers of seeds a side, ascending.
        baseline_seeds: that the baseline has beforehand, if unpaired.
    """
    if pairing == "unpaired":
        return min(float(np.quantile(level, error)) for level in _smallest_levels(looks, baseline_seeds))
    level = error / 2
    for _ in range(5):  # the chance is nearly proportional to the level
        level *= error / _chance_of_any(level, looks)
    return level


def chance_of_any(
    parts: Sequence[tuple[float, tuple[int, ...]]], pairing: Pairing, baseline_seeds: int = 0
) -> float:
    """The chance that a bound errs at any look, where some have another level than others; simulated.

    Args:
        parts: a level, and the looks that have it.
    """
    last = max(count for _, looks in parts for count in looks)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, max(last, baseline_seeds), PATHS)).swapaxes(1, 2)
    if pairing == "paired":
        y = np.zeros_like(y)
    worst = 0.0
    for spread in SPREADS[: 1 if pairing == "paired" else None]:
        erred = np.zeros(2 * PATHS, dtype=bool)
        for level, looks in parts:
            erred |= _smallest_level(spread * x, y, looks, baseline_seeds, pairing) <= level
        worst = max(worst, float(erred.mean()))
    return worst


def _chance_of_any(level: float, looks: tuple[int, ...]) -> float:
    """That Student's t of n values of mean 0 lies beyond its quantile at any of the looks.

    c, the sum of n values over the root of their sum of squares, is a Markov chain, because the length of a
    normal vector is independent of its direction: the next c is c cos(a) + sin(a), and the angle's density is
    proportional to cos(a)^(n - 1). From the last look back to the first value, where c is 1 or -1, this follows
    the chance that no quantile will be passed, as a function of c.
    """
    angle = (np.arange(POINTS) + 0.5) / POINTS * np.pi - np.pi / 2
    after, none = np.array([-1.0, 1.0]) * np.sqrt(looks[-1] + 1), np.ones(2)
    for n in range(looks[-1], 0, -1):
        quantile = -stdtrit(n - 1, level) if n in looks else np.inf
        c = np.sqrt(n) * np.linspace(-1, 1 / np.sqrt(1 + (n - 1) / quantile**2), POINTS)
        onward = np.outer(c, np.cos(angle)) + np.sin(angle)
        weight = np.cos(angle) ** (n - 1)
        none = np.interp(onward, after, none, right=0.0) @ (weight / weight.sum())
        after = c
    return 1 - float(none[0] + none[-1]) / 2


@cache
def _smallest_levels(looks: tuple[int, ...], baseline_seeds: int) -> list[Array]:
    """The smallest level over the looks of simulated confirmations, for each ratio of the spreads."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, max(looks[-1], baseline_seeds), PATHS)).swapaxes(1, 2)
    return [_smallest_level(spread * x, y, looks, baseline_seeds, "unpaired") for spread in SPREADS]


def _smallest_level(
    x: Array, y: Array, looks: tuple[int, ...], baseline_seeds: int, pairing: Pairing
) -> Array:
    smallest = np.ones((2, len(x)))  # of the lower and of the upper bound
    for count in looks:
        found = Estimate.of(x[:, :count], y[:, : max(count, baseline_seeds)], pairing)
        statistic = found.difference / found.error
        far = np.flatnonzero(np.abs(statistic) > 1)  # those below have levels of 15 % and more
        level = stdtr(found.freedom[far], -np.abs(statistic[far]))
        bound = (statistic[far] < 0).astype(int)
        smallest[bound, far] = np.minimum(smallest[bound, far], level)
    return smallest.ravel()
