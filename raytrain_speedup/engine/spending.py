"""An error spent over several looks: the level of each, such that the chance of any erring is the error.

All looks use the same nominal level (Pocock 1977). With a few seeds the statistics are Student's, whose joint
distribution has no formula; but where the truth lies on the boundary it depends on neither spread nor margin, so
one simulation, always the same, gives the level.
- Levels that grow with the seeds were tried (n / 12): power .95 instead of .93 at margin .3 and sd .17 for half
  a seed more. O'Brien and Fleming's are out of reach at three seeds.
- Unpaired, the distribution depends on the ratio of the two spreads: the worst of a few counts.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import stdtr

from raytrain_speedup.engine.estimate import Array, Estimate, Pairing

PATHS = 2**17
"""Simulated confirmations. Each serves both tails: an error of 5 % is met to within .04 % (standard error)."""
SPREADS = (1.0, 2.0, 4.0)
"""Standard deviation of the method over that of the baseline; the other way round is no worse."""


def look_level(error: float, looks: tuple[int, ...], pairing: Pairing, baseline_seeds: int = 0) -> float:
    """One-sided level of each look.

    Args:
        error: chance of any look erring, at most 0.1.
        looks: numbers of seeds a side, ascending.
        pairing: of the two sides.
        baseline_seeds: that the baseline has beforehand, if unpaired.
    """
    return min(float(np.quantile(level, error)) for level in _smallest_levels(looks, pairing, baseline_seeds))


@cache
def _smallest_levels(looks: tuple[int, ...], pairing: Pairing, baseline_seeds: int) -> list[Array]:
    """The smallest level over the looks of simulated confirmations, whose truth lies on the boundary."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, max(looks[-1], baseline_seeds), PATHS)).swapaxes(1, 2)
    if pairing == "paired":
        return [_smallest_level(x, np.zeros_like(x), looks, pairing, 0)]
    return [_smallest_level(spread * x, y, looks, pairing, baseline_seeds) for spread in SPREADS]


def _smallest_level(
    x: Array, y: Array, looks: tuple[int, ...], pairing: Pairing, baseline_seeds: int
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
