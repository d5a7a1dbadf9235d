"""How likely is a setting to be proven lossless, should it be confirmed?

What is delivered in the end is not the cheapest lossless setting but the cheapest that is proven: one at the bound
itself is not, with any number of seeds, and one well above it is with few. What lies between depends on the seeds,
the error and the noise of a run, all of which are known before the first seed of a confirmation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import ndtr, stdtrit

from raytrain_speedup.engine.statistics.verdict import Plan
from raytrain_speedup.tuning.surrogate import Array


@dataclass(frozen=True)
class Proof:
    """The last look of a confirmation.

    Attributes:
        seeds: of each side.
        quantile: standard errors by which the difference has to exceed -margin.
    """

    seeds: int
    quantile: float

    @classmethod
    def by(cls, plan: Plan | None, seeds: int) -> Self:
        """By a plan; without one by the mean of so many seeds."""
        if plan is None:
            return cls(max(1, seeds), 0.0)
        freedom = (plan.max_seeds - 1) * (1 if plan.pairing == "paired" else 2)
        return cls(plan.max_seeds, -float(stdtrit(freedom, plan.levels[0])))

    def chance(self, above_M: Array, deviation_M: Array, noise: float) -> Array:
        """The chance of a proof: of the last look alone, those before it add little.

        Args:
            above_M: by how much the quality of settings is believed to exceed the bound.
            deviation_M: of that.
            noise: standard deviation of a run.
        """
        error = noise * math.sqrt(2 / self.seeds)
        return np.asarray(ndtr((above_M - self.quantile * error) / np.hypot(deviation_M, error)))


def ladder(cost_N: Array, chance_N: Array, *, baseline: float, count: int) -> list[int]:
    """The settings to confirm one after the other, from safe to bold, each only if the one before is proven.

    Of all such ladders it is the one with the greatest expected saving (backward induction, Bellman 1957; whether
    settings are proven counts as independent): a bold setting alone saves much and rarely, and a safe one before it
    makes sure of something at the price of the time that it takes.

    Args:
        cost_N: of settings.
        chance_N: that each is proven.
        baseline: what is spent where none is.
        count: how many settings at most.
    """
    # None is better than one that is cheaper and likelier, so those are enough.
    order_N = np.lexsort((-chance_N, cost_N))
    leading_N = np.maximum.accumulate(np.concatenate([[0.0], chance_N[order_N]]))
    kept = order_N[chance_N[order_N] > leading_N[:-1]]
    cost_M, chance_M = cost_N[kept], chance_N[kept]
    # A row for each cost that is sure already: those of the settings, and the baseline's.
    sure_S = np.append(cost_M, baseline)
    cheaper_SM = cost_M < sure_S[:, None]
    saved_S, choices = np.zeros(len(sure_S)), []
    for _ in range(count if len(kept) else 0):
        saving_SM = chance_M * (sure_S[:, None] - cost_M + saved_S[:-1]) * cheaper_SM
        choices.append(saving_SM.argmax(axis=1))
        saved_S = saving_SM.max(axis=1)
    found, sure = [], len(kept)
    for choice_S in reversed(choices):
        best = int(choice_S[sure])
        if not cheaper_SM[sure, best]:
            break
        found.append(int(kept[best]))
        sure = best
    return found
