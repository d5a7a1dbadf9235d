"""Which trials earn a confirmation over the seeds.

A trial is one seed, and the cheapest of many that look lossless is the one that had most luck. Those that reach
the baseline's mean come first, not those within the margin of it: in simulated sweeps
(tests/tuning/test_winners.py) that leaves 4 to 18 % of them without a proven winner instead of 20 to 68 %, at an
equal or higher speedup. To ask for more than the mean proves more still, but slower ones. Where the trials are
enough for a surface (`frontier.py`), that surface says how likely each is to be proven, and not the luck of single
runs, and those are confirmed that may be expected to save most (`proof.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tuning.objective import Objective
from raytrain_speedup.tuning.proof import ladder


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
    trials: Sequence[Outcome],
    chances: Sequence[float],
    *,
    count: int,
    objective: Objective,
    baseline: float,
) -> list[Outcome]:
    """The trials to confirm one after the other, from safe to bold, see `proof.ladder`.

    What is believed of a setting draws on all trials, so the luck of one is no reason to pick it.

    Args:
        trials: finished trials with their full budget.
        chances: that each trial's settings are proven.
        count: how many to pick at most; where none would be worth it, the likeliest.
        baseline: its cost.
    """
    chance = {trial.name: one for trial, one in zip(trials, chances, strict=True)}
    known = _different(_measured(trials, objective))
    if not known or not count:
        return []
    cost_N = np.array([objective.cost(trial.report) for trial in known])
    chance_N = np.array([chance[trial.name] for trial in known])
    found = ladder(cost_N, chance_N, baseline=baseline, count=count)
    return [known[place] for place in found] or [known[int(chance_N.argmax())]]


def _measured(trials: Sequence[Outcome], objective: Objective) -> list[Outcome]:
    """Those that have a quality and a cost."""
    needed = (objective.quality_metric, objective.cost_metric)
    return [trial for trial in trials if all(name in trial.report for name in needed)]


def _different(trials: Sequence[Outcome]) -> list[Outcome]:
    """The first one of each setting."""
    first = {trial.group: trial for trial in reversed(trials)}
    return [trial for trial in trials if first[trial.group] is trial]
