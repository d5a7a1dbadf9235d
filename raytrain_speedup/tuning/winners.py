"""Which trials earn a confirmation over the seeds.

A trial is one seed, and the cheapest of many that look lossless is the one that had most luck. Those that reach
the baseline's mean come first, not those within the margin of it: in simulated sweeps
(tests/tuning/test_winners.py) that leaves 4 to 18 % of them without a proven winner instead of 20 to 68 %, at an
equal or higher speedup. To ask for more than the mean proves more still, but slower ones. Where the trials are
enough for a surface (`frontier.py`), that surface says which reach it, and not the luck of single runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tuning.objective import Objective


@dataclass(frozen=True)
class Outcome:
    """A finished run with its full budget; `group` is equal where only the seed differs."""

    name: str
    role: str
    group: str
    params: Mapping[str, Any]
    metrics: FinalMetrics

    @cached_property
    def report(self) -> Mapping[str, Any]:
        """The metrics by the names that search-space files have for them."""
        return self.metrics.to_dict()


def pick_winners(
    trials: Sequence[Outcome],
    baselines: Sequence[Mapping[str, Any]],
    *,
    count: int,
    objective: Objective,
) -> list[Outcome]:
    """The cheapest trials that reach the baseline on the validation split; where too few do, the most accurate.

    Args:
        trials: finished trials with their full budget.
        baselines: reports of the baseline's runs; without any, every trial reaches it.
        count: how many to pick; trials of equal settings count once.
        objective: what is better.
    """
    known = _measured(trials, objective)
    level = objective.level(baselines)
    least = -math.inf if level is None else level.mean
    reaching = [trial for trial in known if objective.quality(trial.report) >= least]
    others = [trial for trial in known if objective.quality(trial.report) < least]
    reaching.sort(key=lambda trial: objective.cost(trial.report))
    others.sort(key=lambda trial: -objective.quality(trial.report))
    return _different(reaching + others)[:count]


def pick_ladder(
    trials: Sequence[Outcome], believed: Sequence[float], *, count: int, objective: Objective, bound: float
) -> list[Outcome]:
    """The cheapest trials that are believed to be lossless, from bold to safe.

    What is believed of a setting draws on all trials, so the luck of one is no reason to pick it. A setting at the
    bound itself cannot be proven with any number of seeds: the first pick is believed to lie half a margin above
    it, each further one another half; where there is none, it is the best of the rest.

    Args:
        trials: finished trials with their full budget.
        believed: the quality of each trial's settings.
        count: how many to pick.
        bound: the quality that is asked for.
    """
    value = {trial.name: quality for trial, quality in zip(trials, believed, strict=True)}
    left = _different(sorted(_measured(trials, objective), key=lambda trial: objective.cost(trial.report)))
    picked: list[Outcome] = []
    while left and len(picked) < count:
        aim = bound + objective.margin * (len(picked) + 1) / 2
        good = [trial for trial in left if value[trial.name] >= aim]
        picked.append(good[0] if good else max(left, key=lambda trial: value[trial.name]))
        left.remove(picked[-1])
    return picked


def _measured(trials: Sequence[Outcome], objective: Objective) -> list[Outcome]:
    """Those that have a quality and a cost."""
    needed = (objective.quality_metric, objective.cost_metric)
    return [trial for trial in trials if all(name in trial.report for name in needed)]


def _different(trials: Sequence[Outcome]) -> list[Outcome]:
    """The first one of each setting."""
    first = {trial.group: trial for trial in reversed(trials)}
    return [trial for trial in trials if first[trial.group] is trial]
