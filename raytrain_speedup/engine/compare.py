"""Runs of a method against runs of a baseline: how much faster, and is the quality the same?

The only place where runs are compared. What each side cost is `cost/speedup.py`'s business, what a difference over
the seeds says that of `statistics/verdict.py`; here stands which runs may be compared at all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from raytrain_speedup.engine.cost.speedup import Run, Speedup, by_seed
from raytrain_speedup.engine.statistics.verdict import Look, Plan, Verdict, fixed_look, settle

DEFAULT_METRIC = "accuracy"
"""Of runs that do not say what theirs is."""

FULL_BUDGET = 1 - 1e-6
SAME = {"baseline_key": "task, data and model", "setup": "set-up", "hardware": "hardware"}
"""What has to be equal, and what to call it; `identity.comparison_keys` says what is in each."""


class NotComparable(Exception):
    """These runs make no speedup; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """A method against its baseline. Accuracies and their differences are in points.

    Attributes:
        metric: what is called accuracy here.
        split: the data it is of.
        accuracy: mean over the method's seeds; `accuracy_std` is None for a single seed.
        look: difference, interval and verdict over the seeds.
        speedup: by which clock, and how sure.
        passes_saved: fraction of the sample passes of the budget that were not shown.
    """

    metric: str
    split: Literal["test", "validation"]
    seeds: tuple[int, ...]
    accuracy: float
    accuracy_std: float | None
    baseline_accuracy: float
    look: Look
    speedup: Speedup
    passes_saved: float

    @property
    def difference(self) -> float:
        return self.look.difference

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.look.interval

    @property
    def verdict(self) -> Verdict:
        return self.look.verdict


def compare(
    runs: Sequence[Run],
    baselines: Sequence[Run],
    *,
    margin: float = 0.5,
    look: Look | None = None,
    declared: Collection[str] = (),
) -> Comparison:
    """Compare runs of one setting with their baseline.

    Args:
        runs: the method's runs, which differ in their seed alone.
        baselines: runs of the baseline on the same task, data, model, set-up and hardware.
        margin: how many points below the baseline still count as no loss.
        look: at the difference, where a plan made before the runs says how to (`verdict.settle`); otherwise
            the seeds there are are taken for as many as were meant.
        declared: keys that the runs were said to vary: a budget (`train.epochs`) among them may differ.

    Raises:
        NotComparable: if there is no baseline, if the two sides differ in more than the method, or if a run
            has not spent its whole budget.
    """
    metric = metric_of(runs[0]) if runs else DEFAULT_METRIC
    split, key = split_of(runs, metric)
    _check(runs, baselines, key, same_budget="train.epochs" not in declared)
    method, baseline = by_seed(runs, key), by_seed(baselines, key)
    return Comparison(
        metric=metric,
        split=split,
        seeds=tuple(method),
        accuracy=fmean(method.values()),
        accuracy_std=stdev(method.values()) if len(method) > 1 else None,
        baseline_accuracy=fmean(baseline.values()),
        look=look or fixed_look(method, baseline, margin, grain=grain_of(runs, baselines, split)),
        speedup=Speedup.of(runs, baselines),
        passes_saved=fmean(run["passes_saved"] for run in runs),
    )


def settle_runs(
    plan: Plan, methods: Mapping[str, Sequence[Run]], baselines: Sequence[Run]
) -> dict[str, Look]:
    """A look by a plan at each of the winners that share its error (`verdict.settle`), on the test split.

    Args:
        methods: name: its runs. Those that lack their metric get no look, nor does any without a baseline.
    """
    metric = metric_of(baselines[0]) if baselines else DEFAULT_METRIC
    if not baselines or any(metric not in run for run in baselines):
        return {}
    judged = {
        name: by_seed(runs, metric)
        for name, runs in methods.items()
        if runs and all(metric in run for run in runs)
    }
    return settle(plan, judged, by_seed(baselines, metric), grain=grain_of([], baselines, "test"))


def metric_of(run: Run) -> str:
    """The name of a run's metric."""
    return str(run.get("metric", DEFAULT_METRIC))


def split_of(runs: Sequence[Run], metric: str) -> tuple[Literal["test", "validation"], str]:
    """The split that runs are judged on, and their key for it: a search does not read the test split."""
    if any(metric not in run for run in runs) and all(f"val_{metric}" in run for run in runs):
        return "validation", f"val_{metric}"
    return "test", metric


def grain_of(runs: Sequence[Run], baselines: Sequence[Run], split: Literal["test", "validation"]) -> float:
    """Points that one sample of the split is worth."""
    samples = "test_samples" if split == "test" else "val_samples"
    return 100 / min(run.get(samples, math.inf) for run in (*runs, *baselines))


def spoken(metric: str) -> str:
    """A metric's name for people: `miou` is mIoU, `pixel_accuracy` pixel accuracy."""
    return metric.replace("miou", "mIoU").replace("_", " ")


def _check(runs: Sequence[Run], baselines: Sequence[Run], key: str, *, same_budget: bool) -> None:
    if not runs or not baselines:
        raise NotComparable("no baseline run" if runs else "no run")
    for run in (*runs, *baselines):
        if run.get("progress", 0.0) < FULL_BUDGET:
            raise NotComparable(f"a run ended at {run.get('progress', 0.0):.0%} of its budget")
        if key not in run:
            raise NotComparable(f"a run has no metric {key!r}")
        if run.get("workers_min") != run.get("workers_max"):
            raise NotComparable(f"a run went on with another number of workers: {run.get('hardware')}")
    for same, meaning in (SAME | ({"epochs": "budget, in epochs"} if same_budget else {})).items():
        found = {str(run.get(same)) for run in (*runs, *baselines)}
        if len(found) > 1:
            raise NotComparable(f"the runs differ in {meaning}: {' / '.join(sorted(found))}")
