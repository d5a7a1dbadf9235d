"""How much faster a method is, by which clock, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.statistics.estimate import ratio_interval

Value = Callable[[FinalMetrics], float | None]
"""A number of a run, None where it has none."""

Clock = Literal["reference steps", "wall seconds", "none"]

CONFIDENCE = 0.9
"""Of an interval: each bound holds with 95 %."""

LEAST_CORE_FRACTION = 0.9
MOST_SPREAD = 1.25
MOST_SWITCHES = 500.0
"""In a second of work: two trials on two cores that were theirs lost them 400 times, among other programs 700."""
HOPELESS_SPREAD = 3.0
DISAGREEMENT = 1.25


@dataclass(frozen=True)
class Speedup:
    """Baseline cost over method cost, in times.

    **Which estimate stands.** The cost in *reference steps* (`reference.py`), wherever both sides counted it in
    the same unit: a busy or drifting machine slows a run and its yardstick alike, and wall seconds of runs at
    different moments have said 4.87 where 1.43 was true. *Wall seconds* are all there is of runs that have no
    yardstick (an older version, a script of one's own). And where the yardstick itself moved threefold within a
    run, no time is believed: what is left is the compute, which needs no clock.

    Attributes:
        ratio: None where no time is believed.
        interval: 90 % bounds of the ratio; None below two seeds on either side.
        clock: what the ratio is of.
        wall: by wall seconds of training, for comparison.
        flops: baseline FLOPs / method FLOPs; None where they could not be counted.
        disturbed: what disturbed the runs, as words; empty where nothing did.
        doubt: what disagrees with the ratio beyond a quarter, as words; empty where nothing does.
    """

    ratio: float | None
    interval: tuple[float, float] | None
    clock: Clock
    wall: float
    flops: float | None
    disturbed: str = ""
    doubt: str = ""

    @classmethod
    def of(cls, runs: Sequence[FinalMetrics], baselines: Sequence[FinalMetrics]) -> Speedup:
        """The speedup of comparable runs, each side at least one."""
        everyone = (*runs, *baselines)
        wall, wall_interval = _ratio(runs, baselines, lambda run: run.costs.train_seconds)
        flops = _ratio(runs, baselines, _flops)[0] if all(map(_flops, everyone)) else None
        reasons = disturbances(everyone)
        units = {run.costs.reference_batch for run in everyone}
        if not all(map(_steps, everyone)) or len(units) > 1:
            return cls(wall, wall_interval, "wall seconds", wall, flops, reasons, _doubt(wall, None, flops))
        if _spread(everyone) > HOPELESS_SPREAD:
            return cls(None, None, "none", wall, flops, reasons)
        ratio, interval = _ratio(runs, baselines, _steps)
        return cls(ratio, interval, "reference steps", wall, flops, reasons, _doubt(ratio, wall, flops))


def disturbances(runs: Sequence[FinalMetrics]) -> str:
    """What disturbed runs, the worst of each: it makes their wall seconds doubtful, and their cost less sure."""
    costs = [run.costs for run in runs]
    fraction = min((cost.core_fraction for cost in costs if cost.core_fraction is not None), default=1.0)
    switches = max(cost.switches_per_second or 0.0 for cost in costs)
    spread = _spread(runs)
    others = max(cost.other_processes or 0.0 for cost in costs)
    found = {
        f"as little as {fraction:.0%} of a core": fraction < LEAST_CORE_FRACTION,
        f"core lost up to {switches:.0f} times a second": switches > MOST_SWITCHES,
        f"reference step varied {spread:.2f}-fold": spread > MOST_SPREAD,
        f"{others:.0f} other processes on the GPU": others > 0,
    }
    return ", ".join(reason for reason, holds in found.items() if holds)


def _doubt(ratio: float, wall: float | None, flops: float | None) -> str:
    """A method cannot save much more time than compute, and two clocks should agree."""
    found = []
    if wall is not None and abs(math.log(wall / ratio)) > math.log(DISAGREEMENT):
        found.append(f"{wall:.2f} x by wall seconds")
    if flops is not None and ratio > DISAGREEMENT * flops:
        found.append(f"{flops:.2f} x by FLOPs")
    return "but " + " and ".join(found) if found else ""


def _flops(run: FinalMetrics) -> float | None:
    return run.costs.train_flops


def _steps(run: FinalMetrics) -> float | None:
    return run.costs.reference_steps


def _spread(runs: Sequence[FinalMetrics]) -> float:
    """Of the reference steps, in the run where they varied most."""
    return max(1.0 if run.costs.reference_spread is None else run.costs.reference_spread for run in runs)


def _ratio(
    runs: Sequence[FinalMetrics], baselines: Sequence[FinalMetrics], cost: Value
) -> tuple[float, tuple[float, float] | None]:
    """Baseline over method, and its bounds: seed by seed where the baseline ran those of the method."""
    ours, theirs = by_seed(runs, cost), by_seed(baselines, cost)
    return ratio_interval(ours, theirs, confidence=CONFIDENCE, paired=ours.keys() <= theirs.keys())


def by_seed(runs: Sequence[FinalMetrics], value: Value) -> dict[int, float]:
    """One value per seed, the mean where a seed was run again: a repetition is no new evidence. Runs without a
    value are left out."""
    values: dict[int, list[float]] = {}
    for run in runs:
        if (found := value(run)) is not None:
            values.setdefault(run.seed, []).append(found)
    return {seed: _mean(values[seed]) for seed in sorted(values)}


def _mean(values: list[float]) -> float:
    return float(values[0]) if len(values) == 1 else fmean(values)
