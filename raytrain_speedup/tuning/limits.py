"""What ends a search before its last trial: hours, GPU-hours, or that nothing moves any more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from raytrain_speedup.tuning.sweep_settings import BudgetSettings

WORTH_IT = 0.02
"""Of the cost: by so much the best setting has to become cheaper to have moved."""

TRIALS_A_PARAMETER = 10
"""Fewer do not know a surface: the rule of computer experiments (Loeppky et al. 2009)."""


class Limits:
    """Watches the budget of a search.

    Args:
        budget: of the search-space file.
        gpus: that a run holds.
        parameters: that are searched.
        clock: seconds.
    """

    def __init__(
        self,
        budget: BudgetSettings,
        gpus: float,
        *,
        parameters: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget, self._gpus, self._clock = budget, gpus, clock
        self._fewest, self._told = TRIALS_A_PARAMETER * parameters, 0
        self._began = clock()
        self._gpu_seconds = 0.0
        self._best, self._least, self._unmoved = "", math.inf, 0

    def ran(self, seconds: float) -> None:
        """A run of the search has come to an end."""
        self._gpu_seconds += seconds * self._gpus

    def best_is(self, name: str, cost: float | None = None) -> None:
        """The best setting after another trial; empty where there is none yet.

        Args:
            cost: where one is better only if it is cheaper: what is believed of settings changes with every trial,
                and with it which of two equals is ahead.
        """
        self._told += 1
        moved = name != self._best if cost is None else cost < self._least * (1 - WORTH_IT)
        self._unmoved = 0 if moved or not name else self._unmoved + 1
        if moved:
            self._best, self._least = name, math.inf if cost is None else cost

    def reached(self) -> str | None:
        """Why the search is over, in words."""
        budget = self._budget
        if budget.hours is not None and self._clock() - self._began >= budget.hours * 3600:
            return f"budget.hours: {budget.hours:g} are over"
        if budget.gpu_hours is not None and self._gpu_seconds >= budget.gpu_hours * 3600:
            return f"budget.gpu_hours: {budget.gpu_hours:g} are spent"
        return None

    def settled(self, trials: float = math.inf) -> str | None:
        """Why nothing better is to be expected, in words.

        Args:
            trials: of the search at most: of few, half are enough to say so.
        """
        budget = self._budget
        if self._told < min(self._fewest, trials / 2):
            return None
        if budget.patience is not None and self._unmoved >= budget.patience:
            return f"budget.patience: {self._best} is the best since {self._unmoved} trials"
        return None
