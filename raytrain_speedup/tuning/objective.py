"""What a sweep is after: quality first, then cost, both turned so that a search can rank by them.

What it reads are reports: what a run says after an epoch, or its final metrics by name.

`cheapest-lossless` asks one thing: the smallest cost at a quality of at least baseline - margin. `pareto` asks for
the whole front of quality against cost, most of which nobody would train with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from raytrain_speedup.metric import Direction, Metric

NOT_SPENT = {"samples_per_second", "passes_saved", "peak_memory_bytes"}
"""Costs that do not grow with the progress of a run."""

Kind = Literal["cheapest-lossless", "pareto"]


@dataclass(frozen=True)
class Level:
    """What the baseline reaches, turned so that larger is better, over how many seeds that was seen, and what it
    costs; NaN where that is not known."""

    mean: float
    seeds: int
    cost: float = field(default=math.nan, compare=False)


@dataclass(frozen=True)
class Objective:
    """The metrics of a search.

    Attributes:
        directions: metric: `max` or `min`, quality first; the second one is the cost, else the seconds.
        margin: of the quality, below the baseline, that still counts as no loss.
    """

    kind: Kind
    directions: Mapping[str, Direction]
    margin: float

    @property
    def quality_metric(self) -> str:
        return next(iter(self.directions))

    @property
    def cost_metric(self) -> str:
        return [*self.directions, "train_seconds"][1]

    @property
    def ranks(self) -> Metric:
        """The quality, which ranks the runs."""
        return Metric(self.quality_metric.removeprefix("val_"), self.directions[self.quality_metric])

    def quality(self, metrics: Mapping[str, Any]) -> float:
        """Larger is better; NaN where it was not measured."""
        return self.ranks.merit(_measured(metrics, self.quality_metric))

    def as_measured(self, quality: float) -> float:
        """A quality as its metric has it."""
        return self.ranks.merit(quality)

    def cost(self, metrics: Mapping[str, Any]) -> float:
        """Smaller is better; NaN where it was not measured."""
        cost = Metric(self.cost_metric, self.directions.get(self.cost_metric, "min"))
        return -cost.merit(_measured(metrics, self.cost_metric))

    def whole_cost(self, metrics: Mapping[str, Any]) -> float:
        """What a run will cost in the end, from a report of it."""
        share = 1.0 if self.cost_metric in NOT_SPENT else float(metrics.get("progress", 1.0))
        return self.cost(metrics) / share

    def level(self, baselines: Sequence[Mapping[str, Any]]) -> Level | None:
        """Of final metrics of the baseline; None without any."""
        known = [value for metrics in baselines if math.isfinite(value := self.quality(metrics))]
        costs = [cost for metrics in baselines if math.isfinite(cost := self.cost(metrics))]
        return Level(fmean(known), len(known), fmean(costs) if costs else math.nan) if known else None

    def bound(self, level: Level) -> float:
        """The quality that a setting must have."""
        return level.mean - self.margin


def _measured(metrics: Mapping[str, Any], name: str) -> float:
    return float(metrics.get(name, math.nan))
