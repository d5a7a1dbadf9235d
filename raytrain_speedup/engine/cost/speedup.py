"""How much faster a method is, by which clock, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import fmean
from typing import Literal, NamedTuple, Self

from raytrain_speedup.engine.cost.costs import Costs
from raytrain_speedup.engine.final_metrics import FinalMetrics, Runs
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
        ours, theirs = (Runs.of(side).once(_Side.of) for side in (runs, baselines))
        wall, wall_interval = _ratio(ours.wall, theirs.wall)
        flops = _ratio(ours.flops, theirs.flops)[0] if ours.flops and theirs.flops else None
        worst = Disturbance.worst(ours.disturbed, theirs.disturbed)
        if not (ours.steps and theirs.steps and len(ours.units | theirs.units) == 1):
            doubt = _doubt(wall, None, flops)
            return cls(wall, wall_interval, "wall seconds", wall, flops, worst.spoken(), doubt)
        if worst.spread > HOPELESS_SPREAD:
            return cls(None, None, "none", wall, flops, worst.spoken())
        ratio, interval = _ratio(ours.steps, theirs.steps)
        doubt = _doubt(ratio, wall, flops)
        return cls(ratio, interval, "reference steps", wall, flops, worst.spoken(), doubt)


class Disturbance(NamedTuple):
    """What disturbed runs, the worst of each: it makes their wall seconds doubtful, and their cost less sure.

    Attributes:
        core_fraction: the part of a core that a run had.
        switches: times a second that it lost the core.
        spread: slowest over fastest of its reference steps.
        others: processes beside it on its GPU.
    """

    core_fraction: float
    switches: float
    spread: float
    others: float

    @classmethod
    def of(cls, runs: Sequence[FinalMetrics]) -> Self:
        """Of all these runs, at least one."""
        found = [cls._of_one(run.costs) for run in runs]
        return found[0] if len(found) == 1 else reduce(cls.worst, found)

    @classmethod
    def _of_one(cls, cost: Costs) -> Self:
        return cls(
            1.0 if cost.core_fraction is None else cost.core_fraction,
            cost.switches_per_second or 0.0,
            1.0 if cost.reference_spread is None else cost.reference_spread,
            cost.other_processes or 0.0,
        )

    @classmethod
    def worst(cls, one: Self, other: Self) -> Self:
        return cls(min(one[0], other[0]), *map(max, one[1:], other[1:]))

    def spoken(self) -> str:
        """In words; empty where nothing disturbed."""
        found = []
        if self.core_fraction < LEAST_CORE_FRACTION:
            found.append(f"as little as {self.core_fraction:.0%} of a core")
        if self.switches > MOST_SWITCHES:
            found.append(f"core lost up to {self.switches:.0f} times a second")
        if self.spread > MOST_SPREAD:
            found.append(f"reference step varied {self.spread:.2f}-fold")
        if self.others > 0:
            found.append(f"{self.others:.0f} other processes on the GPU")
        return ", ".join(found)


class _Side(NamedTuple):
    """What the runs of a setting cost, seed by seed, each by one clock; empty where a run lacks it. Found once for
    a baseline, which is one side of hundreds of speedups.

    Attributes:
        units: of reference steps.
    """

    wall: dict[int, float]
    flops: dict[int, float]
    steps: dict[int, float]
    units: set[float | None]
    disturbed: Disturbance

    @classmethod
    def of(cls, runs: Sequence[FinalMetrics]) -> Self:
        return cls(
            by_seed(runs, _wall),
            _if_all(runs, _flops),
            _if_all(runs, _steps),
            {run.costs.reference_batch for run in runs},
            Disturbance.of(runs),
        )


def _doubt(ratio: float, wall: float | None, flops: float | None) -> str:
    """A method cannot save much more time than compute, and two clocks should agree."""
    found = []
    if wall is not None and abs(math.log(wall / ratio)) > math.log(DISAGREEMENT):
        found.append(f"{wall:.2f} x by wall seconds")
    if flops is not None and ratio > DISAGREEMENT * flops:
        found.append(f"{flops:.2f} x by FLOPs")
    return "but " + " and ".join(found) if found else ""


def _wall(run: FinalMetrics) -> float | None:
    return run.costs.train_seconds


def _flops(run: FinalMetrics) -> float | None:
    return run.costs.train_flops


def _steps(run: FinalMetrics) -> float | None:
    return run.costs.reference_steps


def _if_all(runs: Sequence[FinalMetrics], value: Value) -> dict[int, float]:
    """Empty where a run has none, or nothing was counted."""
    return by_seed(runs, value) if all(map(value, runs)) else {}


def _ratio(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> tuple[float, tuple[float, float] | None]:
    """Baseline over method, and its bounds: seed by seed where the baseline ran those of the method."""
    return ratio_interval(ours, theirs, confidence=CONFIDENCE, paired=ours.keys() <= theirs.keys())


def by_seed(runs: Sequence[FinalMetrics], value: Value) -> dict[int, float]:
    """One value per seed, the mean where a seed was run again: a repetition is no new evidence. Runs without a
    value are left out."""
    if len(runs) == 1:
        alone = value(runs[0])
        return {} if alone is None else {runs[0].seed: float(alone)}
    values: dict[int, list[float]] = {}
    for run in runs:
        if (found := value(run)) is not None:
            values.setdefault(run.seed, []).append(found)
    return {seed: fmean(values[seed]) for seed in sorted(values)}
