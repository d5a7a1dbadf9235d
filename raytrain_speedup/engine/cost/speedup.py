"""How much faster a method is, by which clock, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple, Self

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
        sides = Runs.of(runs), Runs.of(baselines)
        wall, wall_interval = _ratio(*sides, _wall)
        flops = _ratio(*sides, _flops)[0] if all(side.once(_have, _flops) for side in sides) else None
        worst = Disturbance.worst(side.once(Disturbance.of) for side in sides)
        units = {unit for side in sides for unit in side.once(_units)}
        if not all(side.once(_have, _steps) for side in sides) or len(units) > 1:
            doubt = _doubt(wall, None, flops)
            return cls(wall, wall_interval, "wall seconds", wall, flops, worst.spoken(), doubt)
        if worst.spread > HOPELESS_SPREAD:
            return cls(None, None, "none", wall, flops, worst.spoken())
        ratio, interval = _ratio(*sides, _steps)
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
        costs = [run.costs for run in runs]
        return cls(
            min((cost.core_fraction for cost in costs if cost.core_fraction is not None), default=1.0),
            max(cost.switches_per_second or 0.0 for cost in costs),
            max(1.0 if cost.reference_spread is None else cost.reference_spread for cost in costs),
            max(cost.other_processes or 0.0 for cost in costs),
        )

    @classmethod
    def worst(cls, several: Iterable[Self]) -> Self:
        fractions, *most = zip(*several, strict=True)
        return cls(min(fractions), *map(max, most))

    def spoken(self) -> str:
        """In words; empty where nothing disturbed."""
        found = {
            f"as little as {self.core_fraction:.0%} of a core": self.core_fraction < LEAST_CORE_FRACTION,
            f"core lost up to {self.switches:.0f} times a second": self.switches > MOST_SWITCHES,
            f"reference step varied {self.spread:.2f}-fold": self.spread > MOST_SPREAD,
            f"{self.others:.0f} other processes on the GPU": self.others > 0,
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


def _wall(run: FinalMetrics) -> float | None:
    return run.costs.train_seconds


def _flops(run: FinalMetrics) -> float | None:
    return run.costs.train_flops


def _steps(run: FinalMetrics) -> float | None:
    return run.costs.reference_steps


def _have(runs: Runs, value: Value) -> bool:
    return all(map(value, runs))


def _units(runs: Runs) -> set[float | None]:
    """Of reference steps."""
    return {run.costs.reference_batch for run in runs}


def _ratio(runs: Runs, baselines: Runs, cost: Value) -> tuple[float, tuple[float, float] | None]:
    """Baseline over method, and its bounds: seed by seed where the baseline ran those of the method."""
    ours, theirs = runs.once(by_seed, cost), baselines.once(by_seed, cost)
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
