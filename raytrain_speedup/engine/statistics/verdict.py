"""Is the quality the same? Verdicts that hold whenever one stops.

A difference is method - baseline, in points, over seeds, of values of which more is better: `engine.compare` turns
a loss round before and the look at it back. **Lossless** is the verdict of a test of
non-inferiority: the lower bound of the difference lies above -margin. **Lossy** is its mirror image: the upper
bound lies below. Each has an error of its own, the chance of that verdict where the truth is -margin.

Seeds arrive one by one, and whoever reads a 5 % bound after each of twelve calls 16 % of the methods that lose
the margin lossless. So a `Plan` says before the first seed at which numbers of seeds the data are looked at, and
spends the error over those looks (`engine.spending`). The bounds are repeated confidence intervals (Jennison &
Turnbull 1989): true together, so one may stop after any look for any reason. Futility is not binding: the levels
are those without it, so one may also go on past it. At 2 % it costs .03 of power (margin .3, sd .17), and a method
on the boundary is given up after 5 seeds rather than 11; at 5 % it would cost .06.

What was tried (tests/engine/test_verdict.py): heavy tails and values on a grid of test samples keep the error.
Differences skewed to the left do not (an exponential tail: 21 % instead of 5 %): a method that fails badly on
one seed in ten may be called lossless by seeds that did not see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal, Self, cast

import numpy as np
from scipy.special import ndtr, stdtrit

from raytrain_speedup.engine.statistics.estimate import (
    MOST_SEEDS,
    SEEDS_NEEDED,
    Array,
    Estimate,
    Metrics,
    Pairing,
    correlation_over_seeds,
    over_seeds,
)
from raytrain_speedup.engine.statistics.spending import chance_of_any, look_level

Verdict = Literal["lossless", "lossy", "not yet known"]
Status = Literal["lossless", "lossy", "not yet known", "futile", "continue"]

PATHS = 2**14
"""Simulated comparisons of a prospect."""


@dataclass(frozen=True)
class Look:
    """What is known after some seeds.

    Attributes:
        seeds: of the method that were read; `baseline_seeds` of the baseline.
        difference: method - baseline, in points.
        standard_error: of the difference; it and the interval are None before the first look.
        interval: lower and upper bound, each of which errs with the error asked for, over all looks together.
        status: the verdict; without one, `futile` (none is likely with the seeds left), `continue` (there are
            seeds left) or `not yet known` (there are none).
        seeds_missing: further seeds a side until a verdict, should the estimate stay as it is, be it more than
            the plan allows; before the first look, until that. 0 with a verdict, None where no number would do
            and where there is no plan: adding seeds until the verdict pleases is what a plan is against.
        correlation: of both sides over seeds; None below three common seeds or where a side is constant. Near
            0, pairing buys nothing.
    """

    seeds: int
    baseline_seeds: int
    difference: float
    standard_error: float | None
    interval: tuple[float, float] | None
    status: Status
    seeds_missing: int | None
    correlation: float | None

    @property
    def verdict(self) -> Verdict:
        """The status for whoever asks only for verdicts."""
        return cast(Verdict, self.status) if self.status in ("lossless", "lossy") else "not yet known"

    def mirrored(self) -> Look:
        """The same of values with the other sign, for a metric of which less is better: its interval reaches from
        the negative upper bound to the negative lower one."""
        interval = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return replace(self, difference=-self.difference, interval=interval)


@dataclass(frozen=True)
class Prospect:
    """What to expect before the first run.

    Attributes:
        lossless, lossy: the chance of each verdict on a winner, were it to get no fraction of the others.
        seeds: expected number of a winner.
        runs: expected number, of all winners and of the baseline they share; `max_runs` is the most it takes.
    """

    lossless: float
    lossy: float
    seeds: float
    runs: float
    max_runs: int


@dataclass(frozen=True)
class Plan:
    """How differences will be judged: made before the data are seen, and part of the evidence.

    Attributes:
        margin: points below the baseline that still count as no loss.
        error: chance of a false lossless, and of a false lossy, over all looks and winners.
        looks: numbers of seeds a side at which the data are looked at.
        pairing: see `engine.estimate`; never changed after data were seen.
        levels: one-sided level of a look where 1, 2, ... winners share the error.
        futility: give up where the chance of a verdict at the last look, should the truth be the estimate, is
            below this. Not binding.
        baseline_seeds: that the baseline has beforehand, if unpaired; every look reads them.
    """

    margin: float
    error: float
    looks: tuple[int, ...]
    pairing: Pairing
    levels: tuple[float, ...]
    futility: float
    baseline_seeds: int = 0

    @property
    def winners(self) -> int:
        """How many share the error."""
        return len(self.levels)

    @property
    def max_seeds(self) -> int:
        """At the last look, on each side."""
        return self.looks[-1]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, for YAML and JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()
        }
        return cls(**fields)

    def extended(self, max_seeds: int) -> Plan:
        """The plan with further looks, for who asks for more seeds after having seen the data.

        The further looks are at the level of a plan that had been as long from the start. What was decided at the
        levels of before stays decided, so the error of the whole is more than that of either: it is computed, and
        stands in `error`.
        """
        longer = plan_for(
            self.margin,
            error=self.error,
            min_seeds=self.looks[0],
            max_seeds=max_seeds,
            winners=self.winners,
            pairing=self.pairing,
            baseline_seeds=self.baseline_seeds,
            futility=self.futility,
        )
        more = tuple(n for n in longer.looks if n > self.max_seeds)
        parts = ((self.levels[-1], self.looks), (longer.levels[-1], more))
        error = self.winners * chance_of_any(parts, self.pairing, self.baseline_seeds)
        return replace(longer, error=max(error, self.error), looks=self.looks + more)

    def look(
        self,
        method: Metrics,
        baseline: Metrics,
        *,
        grain: float = 0.0,
        sharing: tuple[int, int] | None = None,
    ) -> Look:
        """Look at the data, at the largest planned number of seeds that they reach.

        Seeds count in ascending order and a look at n reads the first n: what it finds depends neither on the
        order in which they arrived nor on how many were added since.

        Args:
            method, baseline: value per seed, at least one a side (of the same seed, if paired).
            grain: what one test sample is worth, in points. A few seeds may lose the same number of samples by
                chance; that is no certainty, so the standard error is not taken below that of rounding.
            sharing: how many winners share the error of the lower and of the upper bound, this one included;
                by default all of the plan's (see `settle`).
        """
        ours, theirs = self._read(method, baseline)
        together = correlation_over_seeds(method, baseline)
        seeds, difference = len(ours), float(ours.mean() - theirs.mean())
        if seeds < self.looks[0]:
            missing = self.looks[0] - seeds
            return Look(seeds, len(theirs), difference, None, None, "continue", missing, together)
        levels = self._levels(sharing)
        found = Estimate.of(ours, theirs, self.pairing, grain)
        interval = _floats(found.bounds(*levels))
        status: Status = verdict(interval, self.margin)
        further = 0 if status != "not yet known" else self._missing(found, levels)
        if status == "not yet known" and seeds < self.max_seeds:
            status = "futile" if self._chance(found, levels) < self.futility else "continue"
        return Look(seeds, len(theirs), difference, float(found.error), interval, status, further, together)

    def prospect(self, sd: float, *, difference: float = 0.0, correlation: float = 0.0) -> Prospect:
        """What the plan promises, simulated (normal values, always the same).

        Args:
            sd: standard deviation of a run's value over seeds, in points, on both sides alike.
            difference: the true one of every winner.
            correlation: of both sides over seeds.
        """
        size = (max(self.max_seeds, self.baseline_seeds), PATHS)
        x, z = np.random.default_rng(1).standard_normal((2, *size)).swapaxes(1, 2)
        method, baseline = difference + sd * x, sd * (correlation * x + math.sqrt(1 - correlation**2) * z)
        going, seeds, verdicts = np.arange(len(x)), np.full(len(x), self.max_seeds), np.zeros(2)
        levels = self._levels(None)
        for count in self.looks:
            sides = method[going, :count], baseline[going, : max(count, self.baseline_seeds)]
            found = Estimate.of(*sides, self.pairing)
            low, high = found.bounds(*levels)
            lossless, lossy = low > -self.margin, high < -self.margin
            verdicts += lossless.sum(), lossy.sum()
            stopped = lossless | lossy
            if count < self.max_seeds:
                stopped |= self._chance(found, levels) < self.futility
            seeds[going[stopped]] = count
            going = going[~stopped]
        lossless_fraction, lossy_fraction = (verdicts / len(x)).tolist()
        longest = seeds[: len(x) // self.winners * self.winners].reshape(-1, self.winners).max(axis=1)
        runs = self.winners * seeds.mean() + self._of_baseline(longest).mean()
        most = self.winners * self.max_seeds + self._of_baseline(np.array(self.max_seeds))
        return Prospect(lossless_fraction, lossy_fraction, float(seeds.mean()), float(runs), int(most))

    def _of_baseline(self, seeds: Array) -> Array:
        """Its runs, beside those it has beforehand."""
        return np.maximum(seeds - self.baseline_seeds, 0)

    def _levels(self, sharing: tuple[int, int] | None) -> tuple[float, float]:
        lower, upper = sharing or (self.winners, self.winners)
        return self.levels[lower - 1], self.levels[upper - 1]

    def _read(self, method: Metrics, baseline: Metrics) -> tuple[Array, Array]:
        """The metrics that the latest look reads; before the first one, those there are."""
        ours, theirs = over_seeds(method, baseline, self.pairing)
        reached = [n for n in self.looks if n <= len(ours) and max(n, self.baseline_seeds) <= len(theirs)]
        count = reached[-1] if reached else self.looks[0] - 1
        return ours[:count], theirs[: max(count, self.baseline_seeds)]

    def _missing(self, found: Estimate, levels: tuple[float, float]) -> int | None:
        """Further seeds until a bound has left -margin behind, should the estimate stay."""
        seeds = int(found.counts[0])
        later = [n for n in (*self.looks, *range(self.max_seeds + 1, MOST_SEEDS + 1)) if n > seeds]
        low, high = found.after(np.array(later), self.baseline_seeds).bounds(*levels)
        decided = np.flatnonzero((low > -self.margin) | (high < -self.margin))
        return later[decided[0]] - seeds if len(decided) else None

    def _chance(self, found: Estimate, levels: tuple[float, float]) -> Array:
        """Conditional power (Lan & Wittes 1988) of either verdict at the last look, should the truth be the
        estimate. The looks before it add little."""
        last = found.after(np.array(self.max_seeds), self.baseline_seeds)
        with np.errstate(divide="ignore", invalid="ignore"):
            above = (found.difference + self.margin) / last.error
            to_come = np.sqrt(1 - (last.error / found.error) ** 2)
            lossless = ndtr((above + stdtrit(last.freedom, levels[0])) / to_come)
            lossy = ndtr((-above + stdtrit(last.freedom, levels[1])) / to_come)
        return np.nan_to_num(lossless + lossy)


def plan_for(
    margin: float,
    *,
    error: float = 0.05,
    max_seeds: int = 12,
    min_seeds: int = SEEDS_NEEDED,
    step: int = 1,
    winners: int = 1,
    pairing: Pairing = "paired",
    baseline_seeds: int = 0,
    futility: float = 0.02,
) -> Plan:
    """A plan whose looks together have the error.

    Args:
        margin: points below the baseline that still count as no loss.
        error: chance of a false lossless, and of a false lossy, over all looks and winners.
        max_seeds, min_seeds: seeds a side at the last and at the first look; at least three.
        step: seeds from look to look.
        winners: how many settings are confirmed against the same baseline.
        pairing: `paired` is right in any case; `unpaired` where sides are known not to be correlated.
        baseline_seeds: that the baseline has beforehand; they are of use to unpaired comparisons only.
        futility: smallest chance of a verdict worth going on for; 0 never gives up.
    """
    if not SEEDS_NEEDED <= min_seeds <= max_seeds:
        raise ValueError(
            f"seeds from {min_seeds} to {max_seeds}; expected at least {SEEDS_NEEDED}, ascending"
        )
    looks = (*range(min_seeds, max_seeds, step), max_seeds)
    already = baseline_seeds if pairing == "unpaired" else 0
    levels = tuple(look_level(error / sharing, looks, pairing, already) for sharing in range(1, winners + 1))
    return Plan(margin, error, looks, pairing, levels, futility, already)


def settle(
    plan: Plan, methods: Mapping[str, Metrics], baseline: Metrics, *, grain: float = 0.0
) -> dict[str, Look]:
    """One look at each of several winners, which share the error by Holm's procedure (1979).

    A verdict of a winner leaves its part of the error to the others: with m winners of which k are lossless, the
    rest are tested at error / (m - k). This is the closed test of Bonferroni's sequential tests (Maurer & Bretz
    2013), so it holds for any dependence and any stopping, and a winner needs no further seeds after its verdict.
    Lossy has an error of its own. Each interval errs with at most the error; the verdicts do so together.

    Args:
        methods: name: value per seed, of at most as many winners as the plan has.

    Returns:
        The looks by name. They may change as others are settled, so settle all of them every time.
    """
    lossless = lossy = 0
    while True:
        sharing = (max(1, plan.winners - lossless), max(1, plan.winners - lossy))
        looks = {
            name: plan.look(metrics, baseline, grain=grain, sharing=sharing)
            for name, metrics in methods.items()
        }
        found = [sum(look.status == status for look in looks.values()) for status in ("lossless", "lossy")]
        if found == [lossless, lossy]:
            return looks
        lossless, lossy = found


def fixed_look(
    method: Metrics, baseline: Metrics, margin: float, *, error: float = 0.05, grain: float = 0.0
) -> Look:
    """The verdict of runs without a plan: one look, whose number of seeds nobody chose by looking.

    Paired if both sides ran the same seeds, Welch's test otherwise. No verdict below three seeds a side.
    """
    counts = len(method), len(baseline)
    if min(counts) < 2:  # a trial of a search, of which there are thousands: without NumPy
        difference = fmean(method.values()) - fmean(baseline.values())
        return Look(*counts, difference, None, None, "not yet known", None, None)
    pairing: Pairing = "paired" if method.keys() == baseline.keys() else "unpaired"
    ours, theirs = over_seeds(method, baseline, pairing)
    together = correlation_over_seeds(method, baseline)
    difference = float(ours.mean() - theirs.mean())
    found = Estimate.of(ours, theirs, pairing, grain)
    interval = _floats(found.bounds(error, error))
    status = verdict(interval, margin) if min(counts) >= SEEDS_NEEDED else "not yet known"
    missing = None if status == "not yet known" else 0
    return Look(*counts, difference, float(found.error), interval, status, missing, together)


def verdict(interval: tuple[float, float] | None, margin: float) -> Verdict:
    """Lossless if all of the interval lies above -margin, lossy if all of it lies below."""
    if interval is None:
        return "not yet known"
    lower, upper = interval
    if lower > -margin:
        return "lossless"
    return "lossy" if upper < -margin else "not yet known"


def _floats(bounds: tuple[Array, Array]) -> tuple[float, float]:
    lower, upper = bounds
    return float(lower), float(upper)
