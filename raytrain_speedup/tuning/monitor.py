"""The reports of the runs of a search, as they arrive: which trial cannot become its answer any more?

Stopping needs one number to judge by. With quality and cost there are two, which is why samplers of several
objectives have no pruning (optuna #3450); but a bound on one of them makes the other irrelevant to whoever will not
reach it. And a bound makes a trial superfluous that costs more than one which is believed to reach it: what such a
trial would say of the quality is known in part from its curve, and was never worth the rest of its budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raytrain_speedup.tuning.forecast import Curves, Forecast
from raytrain_speedup.tuning.objective import Level, Objective

DEARER = 1.02
"""Times the cost of another trial: what a whole run will cost is known from its reports to a few per cent."""

EQUAL = 1e6
"""Where the ranks begin of those that are as good as the baseline; no quality is as large."""


@dataclass
class Monitor:
    """Hears of every report of a search.

    Attributes:
        objective: what is better.
        level: what the baseline reaches, once it is known.
        lossless: cost and quality of the finished trials that are believed to reach the bound, by name.
        stopped: why, by name of the run.
    """

    objective: Objective
    level: Level | None = None
    lossless: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    _curves: Curves = field(default_factory=Curves)

    def report(self, name: str, metrics: Mapping[str, Any], *, role: str = "trial") -> None:
        """Take in a report of a run."""
        if "progress" in metrics:
            self._curves.report(name, float(metrics["progress"]), self.objective.quality(metrics), role=role)

    def forecast(self, name: str) -> Forecast | None:
        """Of the final quality of a run under way, or stopped."""
        return self._curves.forecast(name)

    def is_superfluous(self, name: str, metrics: Mapping[str, Any], *, chance: float) -> bool:
        """Whether a trial reaches the bound with less than this chance, or a finished one that does is cheaper and
        at least as good; says why in `stopped`. Never before there is a forecast, so that something is learnt of
        each."""
        forecast = self.forecast(name)
        if forecast is None or self.level is None:
            return False
        bound, progress = self.objective.bound(self.level), float(metrics["progress"])
        if forecast.chance_to_reach(bound) < chance:
            heading, needed = map(self.objective.as_measured, (forecast.mean, bound))
            self.stopped[name] = (
                f"at {progress:.0%}: heads for {heading:.4g} +- {forecast.deviation:.2g}, "
                f"and {needed:.4g} is needed"
            )
            return True
        cost = self.objective.whole_cost(metrics) / DEARER
        good = min(max(forecast.mean, bound), self.level.mean)  # nobody asks for more than the baseline's
        better = [one for one, (spent, quality) in self.lossless.items() if spent < cost and quality >= good]
        if better:
            self.stopped[name] = f"at {progress:.0%}: {better[0]} is cheaper, and believed to be as good"
        return bool(better)

    def rank(self, metrics: Mapping[str, Any]) -> float:
        """Larger is better: those within the margin of the baseline's curve at equal progress by what their whole
        run will cost, all others below them by their quality."""
        progress, quality = float(metrics["progress"]), self.objective.quality(metrics)
        usual = self._curves.usual("baseline", progress)
        cost = self.objective.whole_cost(metrics)
        if usual is None or quality < usual - self.objective.margin or math.isnan(cost):
            return quality
        return EQUAL - math.copysign(math.log1p(abs(cost)), cost)
