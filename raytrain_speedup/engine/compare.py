"""Runs of a method against runs of a baseline: how much faster, and is the accuracy the same?

Accuracy stands for the task's figure of merit in percent, whatever its name (`metric`).

The only place a speedup is made. "Lossless" is a verdict over seeds, not an adjective: the lower confidence
bound of (method - baseline) lies above -margin. This is the usual test of non-inferiority: Student's t on the
paired differences where both sides ran the same seeds, Welch's t (Welch 1947) where they did not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Any, Literal

from scipy.special import stdtrit

Run = Mapping[str, Any]
"""The figures of a finished run as `engine.run.run` returns them, and its `seed`."""

Verdict = Literal["lossless", "lossy", "not yet known"]

DEFAULT_METRIC = "accuracy"
"""Of runs that do not say what theirs is."""

SEEDS_NEEDED = 3
FULL_BUDGET = 1 - 1e-6
SAME = {"baseline_key": "task, data and model", "hardware": "hardware"}


class NotComparable(Exception):
    """These runs make no speedup; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """A method against its baseline. Accuracies and their differences are in points, ratios are times.

    Attributes:
        metric: the figure that is called accuracy here.
        accuracy: mean over the method's seeds; `accuracy_std` is None for a single seed.
        difference: method - baseline; over the seeds both ran, if both ran the same ones.
        interval: lower and upper bound of the difference, each at the confidence asked for; None below two
            seeds on either side, where nothing is known of the spread.
        speedup: baseline seconds / method seconds of training, evaluation excluded.
        flops_ratio: baseline FLOPs / method FLOPs; None where the FLOPs could not be counted.
        passes_saved: share of the sample passes of the budget that were not shown.
    """

    metric: str
    seeds: tuple[int, ...]
    accuracy: float
    accuracy_std: float | None
    baseline_accuracy: float
    difference: float
    interval: tuple[float, float] | None
    verdict: Verdict
    speedup: float
    flops_ratio: float | None
    passes_saved: float


def compare(
    runs: Sequence[Run],
    baselines: Sequence[Run],
    *,
    margin: float = 0.5,
    confidence: float = 0.95,
) -> Comparison:
    """Compare runs of one setting with their baseline.

    Args:
        runs: the method's runs, which differ in their seed alone.
        baselines: runs of the baseline on the same task, data, model, budget and hardware.
        margin: how many points below the baseline still count as no loss.
        confidence: of each bound of the interval, one-sided.

    Raises:
        NotComparable: if there is no baseline, if the two sides differ in more than the method, or if a run
            has not spent its whole budget.
    """
    metric = metric_of(runs[0]) if runs else DEFAULT_METRIC
    _check(runs, baselines, metric)
    method, baseline = _by_seed(runs, metric), _by_seed(baselines, metric)
    grain = 100 / min(run.get("test_samples", math.inf) for run in (*runs, *baselines))
    difference, interval = difference_interval(method, baseline, confidence=confidence, grain=grain)
    enough = min(len(method), len(baseline)) >= SEEDS_NEEDED
    return Comparison(
        metric=metric,
        seeds=tuple(method),
        accuracy=fmean(method.values()),
        accuracy_std=stdev(method.values()) if len(method) > 1 else None,
        baseline_accuracy=fmean(baseline.values()),
        difference=difference,
        interval=interval,
        verdict=verdict(interval, margin) if enough else "not yet known",
        speedup=_ratio(baselines, runs, "train_seconds"),
        flops_ratio=_flops_ratio(baselines, runs),
        passes_saved=fmean(run["passes_saved"] for run in runs),
    )


def metric_of(run: Run) -> str:
    """The name of a run's figure of merit."""
    return str(run.get("metric", DEFAULT_METRIC))


def spoken(figure: str) -> str:
    """A figure's name for people: `miou` is mIoU, `pixel_accuracy` pixel accuracy."""
    return figure.replace("miou", "mIoU").replace("_", " ")


def difference_interval(
    method: Mapping[int, float],
    baseline: Mapping[int, float],
    *,
    confidence: float = 0.95,
    grain: float = 0.0,
) -> tuple[float, tuple[float, float] | None]:
    """Difference of the means (method - baseline) and its bounds, from one figure per seed.

    Paired by seed if both sides ran the same seeds (a seed fixes the initialisation, which moves both sides
    alike), Welch's unequal variances otherwise.

    Args:
        grain: what one test sample is worth. A few seeds may lose the same number of samples by chance; that
            is no certainty, so the standard error is not taken below that of rounding to the grain.
    """
    values, others = list(method.values()), list(baseline.values())
    difference = fmean(values) - fmean(others)
    if min(len(values), len(others)) < 2:
        return difference, None
    if method.keys() == baseline.keys():
        paired = [method[seed] - baseline[seed] for seed in method]
        error, freedom = stdev(paired) / math.sqrt(len(paired)), float(len(paired) - 1)
    else:
        parts = [variance(side) / len(side) for side in (values, others)]
        error = math.sqrt(sum(parts))
        freedom = _welch_freedom(parts, (len(values), len(others)))
    rounding = grain * math.sqrt((1 / len(values) + 1 / len(others)) / 12)
    half = float(stdtrit(freedom, confidence)) * max(error, rounding)
    return difference, (difference - half, difference + half)


def verdict(interval: tuple[float, float] | None, margin: float) -> Verdict:
    """Lossless if all of the interval lies above -margin, lossy if all of it lies below."""
    if interval is None:
        return "not yet known"
    lower, upper = interval
    if lower > -margin:
        return "lossless"
    return "lossy" if upper < -margin else "not yet known"


def _welch_freedom(parts: Sequence[float], counts: Sequence[int]) -> float:
    """Welch-Satterthwaite degrees of freedom; any number will do where nothing varies."""
    largest = max(parts)
    if largest == 0:
        return 1.0
    shares = [part / largest for part in parts]  # the square of a tiny variance would underflow
    below = sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    return sum(shares) ** 2 / below


def _check(runs: Sequence[Run], baselines: Sequence[Run], metric: str) -> None:
    if not runs or not baselines:
        raise NotComparable("no baseline run" if runs else "no run")
    for run in (*runs, *baselines):
        if run.get("progress", 0.0) < FULL_BUDGET:
            raise NotComparable(f"a run ended at {run.get('progress', 0.0):.0%} of its budget")
        if metric not in run:
            raise NotComparable(f"a run has no figure {metric!r}")
    for key, meaning in SAME.items():
        found = {str(run.get(key)) for run in (*runs, *baselines)}
        if len(found) > 1:
            raise NotComparable(f"the runs differ in {meaning}: {' / '.join(sorted(found))}")


def _by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    """One figure per seed, the mean where a seed was run again: a repetition is no new evidence."""
    seeds = sorted({int(run["seed"]) for run in runs})
    return {seed: fmean(run[metric] for run in runs if int(run["seed"]) == seed) for seed in seeds}


def _ratio(baselines: Sequence[Run], runs: Sequence[Run], key: str) -> float:
    return fmean(run[key] for run in baselines) / fmean(run[key] for run in runs)


def _flops_ratio(baselines: Sequence[Run], runs: Sequence[Run]) -> float | None:
    counted = all(run.get("train_flops") for run in (*runs, *baselines))
    return _ratio(baselines, runs, "train_flops") if counted else None
