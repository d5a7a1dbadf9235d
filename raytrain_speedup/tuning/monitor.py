"""The reports of the runs of a search, as they arrive: which trial cannot reach the bound any more?

Stopping needs one number to judge by. With quality and cost there are two, which is why samplers of several
objectives have no pruning (optuna #3450); but a bound on one of them makes the other irrelevant to whoever will not
reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raytrain_speedup.tuning.forecast import Curves, Forecast
from raytrain_speedup.tuning.objective import Level, Objective

EQUAL = 1e6
"""Where the ranks begin of those that are as good as the baseline; no quality is as large."""


@dataclass
class Monitor:
    """Hears of every report of a search.

    Attributes:
        objective: what is better.
        level: what the baseline reaches, once it is known.
        stopped: why, by name of the run.
    """

    objective: Objective
    level: Level | None = None
    stopped: dict[str, str] = field(default_factory=dict)
    _curves: Curves = field(default_factory=Curves)

    def report(self, name: str, metrics: Mapping[str, Any], *, role: str = "trial") -> None:
        """Take in a report of a run."""
        if "progress" in metrics:
            self._curves.report(name, float(metrics["progress"]), self.objective.quality(metrics), role=role)

    def forecast(self, name: str) -> Forecast | None:
        """Of the final quality of a run under way, or stopped."""
        return self._curves.forecast(name)

    def is_hopeless(self, name: str, progress: float, *, chance: float) -> bool:
        """Whether a trial reaches the bound with less than this chance; says why in `stopped`."""
        forecast = self.forecast(name)
        if forecast is None or self.level is None:
            return False
        bound = self.objective.bound(self.level)
        if forecast.chance_to_reach(bound) >= chance:
            return False
        heading, needed = map(self.objective.as_measured, (forecast.mean, bound))
        self.stopped[name] = (
            f"at {progress:.0%}: heads for {heading:.4g} +- {forecast.deviation:.2g}, and {needed:.4g} is needed"
        )
        return True

    def rank(self, metrics: Mapping[str, Any]) -> float:
        """Larger is better: those within the margin of the baseline's curve at equal progress by what their whole
        run will cost, all others below them by their quality."""
        progress, quality = float(metrics["progress"]), self.objective.quality(metrics)
        usual = self._curves.usual("baseline", progress)
        cost = self.objective.whole_cost(metrics)
        if usual is None or quality < usual - self.objective.margin or math.isnan(cost):
            return quality
        return EQUAL - math.copysign(math.log1p(abs(cost)), cost)
