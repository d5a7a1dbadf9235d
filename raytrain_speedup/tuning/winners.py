"""Which trials earn a confirmation over the seeds.

A trial is one seed, and the cheapest of many that look lossless is the one that had most luck. Those that reach
the baseline's mean come first, not those within the margin of it: in simulated sweeps
(tests/tuning/test_winners.py) that leaves 4 to 18 % of them without a proven winner instead of 20 to 68 %, at an
equal or higher speedup. To ask for more than the mean proves more still, but slower ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from raytrain_speedup.engine.final_metrics import FinalMetrics


@dataclass(frozen=True)
class Outcome:
    """A finished run with its full budget; `group` is equal where only the seed differs."""

    name: str
    role: str
    group: str
    params: Mapping[str, Any]
    metrics: FinalMetrics


def pick_winners(
    trials: Sequence[Outcome],
    baselines: Sequence[FinalMetrics],
    *,
    count: int,
    objectives: Mapping[str, str],
) -> list[Outcome]:
    """The cheapest trials that reach the baseline on the validation split; where too few do, the most accurate.

    Args:
        trials: finished trials with their full budget.
        baselines: final metrics of the baseline's runs; without any, every trial reaches it.
        count: how many to pick; trials of equal settings count once.
        objectives: metric: `max` or `min`, quality first; the second one is the cost, else the seconds.
    """
    quality, *costs = objectives
    cost = costs[0] if costs else "train_seconds"
    sign = {key: 1 if direction == "max" else -1 for key, direction in objectives.items()}
    known = [t for t in trials if None not in (t.metrics.value(quality), t.metrics.value(cost))]

    def good(metrics: FinalMetrics) -> float:
        return (metrics.value(quality) or 0.0) * sign[quality]

    def expense(trial: Outcome) -> float:
        return -(trial.metrics.value(cost) or 0.0) * sign.get(cost, -1)

    level = fmean(good(metrics) for metrics in baselines) if baselines else float("-inf")
    reaching = sorted((trial for trial in known if good(trial.metrics) >= level), key=expense)
    others = sorted((trial for trial in known if good(trial.metrics) < level), key=lambda t: -good(t.metrics))
    different = {trial.group: trial for trial in reversed(reaching + others)}
    return [trial for trial in reaching + others if different[trial.group] is trial][:count]
