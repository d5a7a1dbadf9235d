"""Which trials earn a confirmation over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A finished run with its full budget; `group` is equal where only the seed differs."""

    name: str
    role: str
    group: str
    params: Mapping[str, Any]
    figures: Mapping[str, Any]


def pick_winners(
    trials: Sequence[Outcome],
    baselines: Sequence[Mapping[str, Any]],
    *,
    count: int,
    margin: float,
    objectives: Mapping[str, str],
) -> list[Outcome]:
    """The cheapest trials that look lossless on the validation split; where too few do, the most accurate.

    Args:
        trials: finished trials with their full budget.
        baselines: final figures of the baseline's runs; without any, every trial looks lossless.
        count: how many to pick; trials of equal settings count once.
        margin: points of the first objective that may be lost.
        objectives: figure: `max` or `min`, quality first; the second one is the cost, else the seconds.
    """
    quality, *costs = objectives
    cost = costs[0] if costs else "train_seconds"
    sign = {key: 1 if direction == "max" else -1 for key, direction in objectives.items()}
    known = [trial for trial in trials if quality in trial.figures and cost in trial.figures]

    def good(figures: Mapping[str, Any]) -> float:
        return float(figures[quality]) * sign[quality]

    def expense(trial: Outcome) -> float:
        return -float(trial.figures[cost]) * sign.get(cost, -1)

    level = fmean(good(figures) for figures in baselines) - margin if baselines else float("-inf")
    lossless = sorted((trial for trial in known if good(trial.figures) >= level), key=expense)
    others = sorted((trial for trial in known if good(trial.figures) < level), key=lambda t: -good(t.figures))
    different = {trial.group: trial for trial in reversed(lossless + others)}
    return [trial for trial in lossless + others if different[trial.group] is trial][:count]
