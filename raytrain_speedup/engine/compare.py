"""Runs of a method against runs of a baseline: how much faster, and is the quality the same?

The only place where runs are compared. What each side cost is `cost/speedup.py`'s business, what a difference over
the seeds says that of `statistics/verdict.py`; here stands which runs may be compared at all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean, stdev
from typing import Any

from raytrain_speedup.engine.cost.speedup import Speedup, Value, by_seed
from raytrain_speedup.engine.final_metrics import FinalMetrics, Runs
from raytrain_speedup.engine.statistics.verdict import Look, Plan, Verdict, fixed_look, settle
from raytrain_speedup.metric import Metric, SplitName

FULL_BUDGET = 1 - 1e-6
BUDGET = "budget, in epochs"

METRIC_ON: dict[SplitName, Value] = {
    "test": lambda run: run.of("test"),
    "validation": lambda run: run.of("validation"),
}
"""What ranks a run, on a split."""


HAS_TO_BE_EQUAL = {
    "metric": "metric",
    "task, data and model": "baseline_key",
    "set-up": "setup",
    "hardware": "hardware",
    BUDGET: "epochs",
}
"""What it is called in which two sides may not differ; `identity.comparison_keys` says what is in a key."""

QUESTION = attrgetter(*HAS_TO_BE_EQUAL.values())


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

    metric: Metric
    split: SplitName
    seeds: tuple[int, ...]
    accuracy: float
    accuracy_std: float | None
    baseline_accuracy: float
    look: Look
    speedup: Speedup
    passes_saved: float

    @property
    def difference(self) -> float:
        """Method - baseline, in the metric as it is: of a loss, above 0 is worse."""
        return self.look.difference

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.look.interval

    @property
    def verdict(self) -> Verdict:
        return self.look.verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain data by the names of `NAMES`."""
        return {name: attrgetter(place)(self) for name, place in NAMES.items()}

    def spoken(self) -> str:
        """The difference and its interval, for people."""
        return self.metric.difference(self.difference, self.interval)

    @property
    def gain(self) -> float:
        """The difference, above 0 where the method is better."""
        return self.metric.merit(self.difference)

    @property
    def least_gain(self) -> float | None:
        """The bound of the interval that is worse."""
        return None if self.interval is None else min(map(self.metric.merit, self.interval))


NAMES = {
    "baseline_accuracy": "baseline_accuracy",
    "difference": "look.difference",
    "interval": "look.interval",
    "verdict": "look.verdict",
    "status": "look.status",
    "seeds_missing": "look.seeds_missing",
    "correlation": "look.correlation",
    "speedup": "speedup.ratio",
    "speedup_interval": "speedup.interval",
    "speedup_clock": "speedup.clock",
    "wall_speedup": "speedup.wall",
    "flops_ratio": "speedup.flops",
    "disturbed": "speedup.disturbed",
    "doubt": "speedup.doubt",
}
"""By which the leaderboard, the evidence of a schedule and a sweep's own run know what a comparison holds."""


def compare(
    runs: Sequence[FinalMetrics],
    baselines: Sequence[FinalMetrics],
    *,
    margin: float = 0.5,
    look: Look | None = None,
    declared: Collection[str] = (),
) -> Comparison:
    """Compare runs of one setting with their baseline.

    Args:
        runs: the method's runs, which differ in their seed alone.
        baselines: runs of the baseline on the same task, data, model, set-up and hardware.
        margin: by how many points a method may be worse and still count as no loss.
        look: at the difference, where a plan made before the runs says how to (`settle_runs`); otherwise the
            seeds there are are taken for as many as were meant.
        declared: keys that the runs were said to vary: a budget (`train.epochs`) among them may differ.

    Raises:
        NotComparable: if there is no baseline, if the two sides differ in more than the method, or if a run
            has not spent its whole budget.
    """
    runs, baselines = sides = Runs.of(runs), Runs.of(baselines)
    split = split_of(runs)
    _check(runs, baselines, split, same_budget="train.epochs" not in declared)
    metric = runs[0].metric
    method, baseline = (side.once(by_seed, METRIC_ON[split]) for side in sides)
    if look is None:
        # One seed has no spread that a grain could be seen in: of thousands of trials it is not looked for.
        several = min(len(method), len(baseline)) > 1
        grain = max(side.once(grain_of, split) for side in sides) if several else 0.0
        ours, theirs = (side.once(_merits_on, split) for side in sides)
        look = _as_is(metric, fixed_look(ours, theirs, margin, grain=grain))
    return Comparison(
        metric=metric,
        split=split,
        seeds=tuple(method),
        accuracy=fmean(method.values()),
        accuracy_std=stdev(method.values()) if len(method) > 1 else None,
        baseline_accuracy=fmean(baseline.values()),
        look=look,
        speedup=Speedup.of(*sides),
        passes_saved=fmean([run.passes_saved for run in runs]),
    )


def settle_runs(
    plan: Plan, methods: Mapping[str, Sequence[FinalMetrics]], baselines: Sequence[FinalMetrics]
) -> dict[str, Look]:
    """A look by a plan at each of the winners that share its error (`verdict.settle`), on the test split.

    Args:
        methods: name: its runs. Those that lack their metric get no look, nor does any without a baseline.
    """
    if not baselines or any(run.of("test") is None for run in baselines):
        return {}
    metric = baselines[0].metric
    judged = {
        name: _merits_on(runs, "test")
        for name, runs in methods.items()
        if runs and all(run.metric == metric and run.of("test") is not None for run in runs)
    }
    looks = settle(plan, judged, _merits_on(baselines, "test"), grain=grain_of(baselines, "test"))
    return {name: _as_is(metric, look) for name, look in looks.items()}


def split_of(runs: Sequence[FinalMetrics]) -> SplitName:
    """The split that runs are judged on: a search does not read the test split."""
    tested, validated = ([run.of(split) is not None for run in runs] for split in ("test", "validation"))
    return "test" if all(tested) or not all(validated) else "validation"


def grain_of(runs: Sequence[FinalMetrics], split: SplitName) -> float:
    """Points that one sample of the split is worth, where the metric is in percent; of others that is not known."""
    if any(run.metric.unit != "%" for run in runs):
        return 0.0
    counts = [run.test_samples if split == "test" else run.val_samples for run in runs]
    return 100 / min((count for count in counts if count), default=math.inf)


def _merits_on(runs: Sequence[FinalMetrics], split: SplitName) -> dict[int, float]:
    """What `statistics` compares, where larger is better: the metric of comparable runs, by seed."""
    metric = runs[0].metric
    return {seed: metric.merit(value) for seed, value in by_seed(runs, METRIC_ON[split]).items()}


def _as_is(metric: Metric, look: Look) -> Look:
    """A look at merits as one at the metric itself."""
    return look if metric.sign > 0 else look.mirrored()


def _check(runs: Runs, baselines: Runs, split: SplitName, *, same_budget: bool) -> None:
    if not runs or not baselines:
        raise NotComparable("no baseline run" if runs else "no run")
    key = runs[0].metric.key(split)
    for side in (runs, baselines):
        if (fault := side.once(_fault, key)) is not None:
            raise NotComparable(fault)
    questions = runs.once(_questions) | baselines.once(_questions)
    if len(questions) == 1:  # so it is with nearly all of thousands of trials
        return
    for meaning, answers in zip(HAS_TO_BE_EQUAL, zip(*questions, strict=True), strict=True):
        said = sorted(set(map(_spoken, answers)))
        if len(said) > 1 and (same_budget or meaning != BUDGET):
            raise NotComparable(f"the runs differ in {meaning}: {' / '.join(said)}")


def _fault(runs: Runs, key: str) -> str | None:
    """Why one of them takes no part in any comparison by the metric of this key."""
    for run in runs:
        if run.progress < FULL_BUDGET:
            return f"a run ended at {run.progress:.0%} of its budget"
        if key not in run.metrics:
            return f"a run has no metric {key!r}"
        if run.workers_min != run.workers_max:
            return f"a run went on with another number of workers: {run.hardware}"
    return None


def _questions(runs: Runs) -> set[tuple[Any, ...]]:
    """What the runs say of each of `HAS_TO_BE_EQUAL`; of comparable ones it is one answer."""
    return {QUESTION(run) for run in runs}


def _spoken(answer: Any) -> str:
    return f"{answer.name}, {answer.direction}" if isinstance(answer, Metric) else str(answer)
