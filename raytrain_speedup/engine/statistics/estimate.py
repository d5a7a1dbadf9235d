"""A difference over seeds, its standard error and its bounds: Student's t, paired or Welch's.

One value per seed and side. Paired compares seed by seed and is right whatever the correlation of the two sides
over seeds; Welch's test (1947) keeps the sides apart, which is better where they are not correlated (twice the
degrees of freedom) and wrong where the correlation is negative. Costs are compared by the logarithm of their
ratio, which is as good for 2 x as for 1/2 x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import correlation, fmean
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, stdtrit

Pairing = Literal["paired", "unpaired"]
Metrics = Mapping[int, float]
"""One value per seed."""
Array = NDArray[np.float64]

SEEDS_NEEDED = 3
"""Below these nothing is known of the spread, whatever the formula says."""
MOST_SEEDS = 200
"""Nobody is told to run more than this."""
NO_DOUBT = 30.0
"""Standard errors beyond which the power is 1 (and scipy's value of it is not a number)."""


@dataclass(frozen=True)
class Estimate:
    """Difference of two means, or a whole array of them (simulations).

    Attributes:
        difference: method - baseline.
        variances: over seeds: of the differences if paired, else of the method and of the baseline.
        counts: seeds of the method and of the baseline (equal if paired).
        grain: what one test sample is worth; the standard error is not taken below that of rounding to it.
    """

    difference: Array
    variances: tuple[Array, ...]
    counts: tuple[Array, Array]
    grain: float = 0.0

    @classmethod
    def of(cls, method: Array, baseline: Array, pairing: Pairing, grain: float = 0.0) -> Self:
        """From values whose last axis are the seeds; at least two a side."""
        sides = (method - baseline,) if pairing == "paired" else (method, baseline)
        variances = tuple(side.var(axis=-1, ddof=1) for side in sides)
        counts = (np.array(method.shape[-1]), np.array(baseline.shape[-1]))
        return cls(method.mean(axis=-1) - baseline.mean(axis=-1), variances, counts, grain)

    @property
    def error(self) -> Array:
        """Standard error of the difference."""
        n, m = self.counts
        rounding = self.grain**2 / 12 * (1 / n + 1 / m)
        return np.sqrt(np.maximum(sum(self._parts()), rounding))

    @property
    def freedom(self) -> Array:
        """Degrees of freedom by Welch and Satterthwaite; seeds - 1 if paired."""
        parts = self._parts()
        largest = np.max(parts, axis=0)
        # Fractions, because the square of a tiny variance underflows; equal ones where nothing varies.
        fractions = [np.divide(part, largest, out=np.ones_like(largest), where=largest > 0) for part in parts]
        below = sum(fraction**2 / (n - 1) for fraction, n in zip(fractions, self.counts, strict=False))
        return sum(fractions) ** 2 / below

    def bounds(self, lower: float, upper: float) -> tuple[Array, Array]:
        """Lower and upper bound, each of which errs with its one-sided level."""
        error, freedom = self.error, self.freedom
        return (
            self.difference + stdtrit(freedom, lower) * error,
            self.difference - stdtrit(freedom, upper) * error,
        )

    def after(self, seeds: Array, baseline_seeds: int = 0) -> Self:
        """The same difference and spread after so many seeds of the method.

        Args:
            baseline_seeds: that the baseline has in any case.
        """
        return replace(self, counts=(seeds, np.maximum(seeds, baseline_seeds)))

    def _parts(self) -> list[Array]:
        """Variance of the mean, of each side."""
        return [variance / n for variance, n in zip(self.variances, self.counts, strict=False)]


def over_seeds(method: Metrics, baseline: Metrics, pairing: Pairing) -> tuple[Array, Array]:
    """The values in ascending order of their seeds; if paired, of the seeds that both sides ran."""
    ours, theirs = sorted(method), sorted(baseline)
    if pairing == "paired":
        ours = theirs = [seed for seed in ours if seed in baseline]
    return np.array([method[seed] for seed in ours]), np.array([baseline[seed] for seed in theirs])


def correlation_over_seeds(method: Metrics, baseline: Metrics) -> float | None:
    """Pearson's, over the seeds both sides ran; None below three of them, or where a side is constant."""
    if len(method.keys() & baseline.keys()) < 3:
        return None
    ours, theirs = over_seeds(method, baseline, "paired")
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    return correlation(ours.tolist(), theirs.tolist())


def ratio_interval(
    method_costs: Metrics, baseline_costs: Metrics, *, confidence: float = 0.95, paired: bool
) -> tuple[float, tuple[float, float] | None]:
    """How many times cheaper the method is: baseline / method, and its interval.

    Args:
        method_costs, baseline_costs: positive cost of each seed's run, in any unit, at least one a side.
        confidence: two-sided; 0.9 where each bound is to hold with 95 %.
        paired: take the ratio seed by seed, over the seeds both sides ran (at least one), rather than of the
            two geometric means (Welch).

    Returns:
        The ratio of the geometric means, and its bounds; None below two seeds on a side.
    """
    if len(method_costs) == 1:  # a trial of a search, of which there are thousands: without NumPy
        (seed, cost), *_ = method_costs.items()
        if paired:
            return baseline_costs[seed] / cost, None
        return math.exp(fmean(map(math.log, baseline_costs.values())) - math.log(cost)), None
    pairing: Pairing = "paired" if paired else "unpaired"
    ours, theirs = (np.log(side) for side in over_seeds(method_costs, baseline_costs, pairing))
    if min(len(ours), len(theirs)) < 2:
        return math.exp(theirs.mean() - ours.mean()), None
    found = Estimate.of(theirs, ours, pairing)
    level = (1 - confidence) / 2
    low, high = np.exp(found.bounds(level, level))
    return math.exp(found.difference), (float(low), float(high))


def required_seeds(
    margin: float,
    sd: float,
    *,
    power: float = 0.8,
    error: float = 0.05,
    difference: float = 0.0,
    correlation: float = 0.0,
    pairing: Pairing = "paired",
) -> int | None:
    """Seeds per side with which a single look at the end finds a method lossless; None if over two hundred.

    Args:
        margin: points below the baseline that still count as no loss.
        sd: standard deviation of one run's value over seeds, in points, on both sides alike.
        power: chance of the verdict.
        error: one-sided.
        difference: the true one, method - baseline.
        correlation: of the two sides over seeds; only pairing gains by it.
    """
    seeds = np.arange(2, MOST_SEEDS + 1)
    if pairing == "paired":
        freedom, spread = seeds - 1.0, sd * math.sqrt(2 * (1 - correlation))
    else:
        freedom, spread = 2 * seeds - 2.0, sd * math.sqrt(2)
    shift = np.clip((difference + margin) / max(spread, 1e-9) * np.sqrt(seeds), -NO_DOUBT, NO_DOUBT)
    found = 1 - nctdtr(freedom, shift, -stdtrit(freedom, error))
    enough = seeds[(found >= power) & (seeds >= SEEDS_NEEDED)]
    return int(enough[0]) if len(enough) else None
