"""Optuna as a sweep asks and tells it: the history of an earlier run of the sweep, and honest endings.

A trial is COMPLETE only if it spent its budget: one that was stopped has the accuracy of that moment (told as
complete, five of seven "best" trials had been stopped early). One that cannot be run, for lack of memory or
because its settings are refused, violates a constraint: TPE does not look at a trial that is told FAIL, and
goes on asking for the like of it. Under `cheapest-lossless` the cost is what is minimised and the quality is a
constraint, told once the baseline has said where it lies.

Every suggestion has a number, and a sampler of its own that is seeded by it; the suggestions of an earlier
run of the sweep are asked and told again in their order. So a sweep that was interrupted goes on with the points
that it would have had, as far as its trials end in the same order (one at a time they do). Settings that are
suggested again train with another seed: what they did the first time is known.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from raytrain_speedup.engine.final_metrics import is_final
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.confirmation import confirmation_plan
from raytrain_speedup.tuning.forecast import Forecast
from raytrain_speedup.tuning.frontier import (
    COST,
    DOUBT,
    FAILED,
    QUALITY,
    UNUSED,
    Beliefs,
    Bound,
    Rehearsal,
    active,
    told,
)
from raytrain_speedup.tuning.objective import Level
from raytrain_speedup.tuning.proof import Proof
from raytrain_speedup.tuning.samplers import build_sampler, startup_trials
from raytrain_speedup.tuning.space import Sweep

LOSSY = "quality below the bound"
"""The constraint of `cheapest-lossless`."""

REHEARSALS = 10
"""One trial of so many, at the end of a search, tries what would be confirmed."""


@dataclass(frozen=True)
class Suggestion:
    """Settings to try, by dotted experiment key; the numbers of a sweep count from 1, and so do the repeats of
    settings from 0."""

    number: int
    params: dict[str, Any]
    trial: optuna.Trial
    repeat: int = 0


@dataclass(frozen=True)
class Ending:
    """How a suggestion ended.

    Attributes:
        state: finished, stopped (early) or failed, as in `store.Record`.
        metrics: the final ones, if it finished; the last ones, if it was stopped.
        forecast: of the final quality of one that was stopped.
    """

    state: str
    metrics: Mapping[str, Any]
    forecast: Forecast | None = None


class Believed(NamedTuple):
    """A trial that spent its budget: its number, what it cost, and the quality that is believed of its settings."""

    number: int
    cost: float
    quality: float


class Search:
    """Suggests settings and learns how they did.

    Args:
        sweep: what is searched and how.
        level: what the baseline reached in an earlier run of the sweep, whose trials `repeat` takes.

    Attributes:
        study: Optuna's, in memory.
        told: how many suggestions have come to an end.
        last: number of the last one.
        proof: what a confirmation will ask of a setting.
    """

    def __init__(self, sweep: Sweep, *, level: Level | None = None) -> None:
        self.settings, self.objective = sweep.settings, sweep.objective
        self.told, self.last = 0, sweep.settings.trials
        self.proof = Proof.by(confirmation_plan(sweep.settings, 1), len(sweep.settings.seeds))
        rehearses = self.settings.sampler == "frontier" and self.settings.confirm.rungs > 0
        self._rehearsals = self.settings.trials // REHEARSALS if rehearses else 0
        self._space, self._sweep = sweep.distributions(), sweep
        lossless = self.objective.kind == "cheapest-lossless"
        directions = ["min"] if lossless else list(self.objective.directions.values())
        self.study = optuna.create_study(
            study_name=sweep.settings.name,
            directions=["maximize" if mode == "max" else "minimize" for mode in directions],
        )
        self._points = deque(dict(point) for point in sweep.settings.points_to_evaluate)
        self._again: deque[Suggestion] = deque()
        self._untold: list[tuple[Suggestion, Ending]] = []
        self._tries: dict[str, int] = {}
        self._bound: Bound | None = None
        self._beliefs: Beliefs | None = None  # fitted when first asked for after something was learnt
        if level is not None:
            self.learn(level)

    def repeat(
        self,
        past: Sequence[Record],
        reports: Mapping[str, Mapping[str, Any]],
        forecasts: Mapping[str, Forecast],
    ) -> Iterator[int]:
        """Ask and tell again what an earlier run of the sweep did; gives the number of every trial that was told.

        A number without a record was refused before it was a run, or lost before it was written down. It is
        suggested again; the sampler gives it the settings that it gave it then.

        Args:
            past: its trials, named `...-NUMBER`; finished, stopped and failed ones become history, interrupted ones
                are suggested again first.
            reports: what those that ended reported last, by name.
            forecasts: of those that were stopped, by name.
        """
        by_number = {int(trial.name.rpartition("-")[2]): trial for trial in past}
        for number in range(1, max(by_number, default=0) + 1):
            known = by_number.get(number)
            suggestion = self._ask(known.params if known else self._given())
            tried = [point for point in self._points if point.items() <= suggestion.params.items()]
            if known and tried:
                self._points.remove(tried[0])
            if known is None or known.state == "interrupted":
                self._again.append(suggestion)
            else:
                report = reports.get(known.name, {})
                self.tell(suggestion, Ending(known.state, report, forecasts.get(known.name)))
                yield number

    def suggest(self) -> Suggestion:
        """What to try next."""
        return self._again.popleft() if self._again else self._ask(self._given())

    def learn(self, level: Level) -> None:
        """What the baseline reaches; the trials that ended before are told now."""
        self._bound, self._beliefs = Bound(level, self.objective.margin), None
        while self._untold:
            self._tell(*self._untold.pop(0))

    def end_soon(self) -> None:
        """Let only what would be confirmed be tried before the end, which comes with trial `last`."""
        begun = len(self.study.get_trials(deepcopy=False))
        self.last = min(self.last, begun + self._rehearsals)

    def tell(self, suggestion: Suggestion, ending: Ending) -> None:
        """How it ended. An objective that is no number is a failure."""
        self.told += 1
        if self.objective.kind == "cheapest-lossless" and self._bound is None:
            self._untold.append((suggestion, ending))
        else:
            self._tell(suggestion, ending)

    def beliefs(self) -> Beliefs | None:
        """What the trials say of all settings; None before there are some, or a baseline."""
        if self._beliefs is None and self._bound is not None:
            tried = told(self.study.get_trials(deepcopy=False))
            if any(COST in trial.user_attrs for trial in tried):
                self._beliefs = Beliefs(self._space, tried, self._bound)
        return self._beliefs

    @property
    def believes(self) -> bool:
        """Whether enough trials have come to an end to believe in any."""
        return self.told >= startup_trials(self.settings)

    def lossless(self) -> list[Believed]:
        """The whole trials that are believed to reach the bound; none while too few have come to an end to believe
        in any."""
        beliefs = self.beliefs() if self.believes else None
        if beliefs is None:
            return []
        return [
            Believed(trial.number + 1, trial.user_attrs[COST], quality)
            for trial, quality in self._whole(beliefs)
            if quality >= beliefs.bound.quality and COST in trial.user_attrs
        ]

    @property
    def whole(self) -> set[int]:
        """The numbers of the trials that spent their budget."""
        return {trial.number + 1 for trial in self._complete()}

    def _complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def _whole(self, beliefs: Beliefs) -> list[tuple[FrozenTrial, float]]:
        """The trials that spent their budget, and what quality is believed of their settings."""
        whole = self._complete()
        return list(zip(whole, beliefs.believed([active(trial) for trial in whole]), strict=True))

    def _tell(self, suggestion: Suggestion, ending: Ending) -> None:
        self._beliefs = None
        trial, values = suggestion.trial, objective_values(ending.metrics, list(self.objective.directions))
        if ending.state == "finished" and values is not None:
            self._learn_of(trial, self.objective.quality(ending.metrics), ending.metrics)
            lossless = self.objective.kind == "cheapest-lossless"
            self.study.tell(trial, self.objective.cost(ending.metrics) if lossless else values)
            return
        if ending.state != "stopped":
            trial.set_user_attr(FAILED, True)
            trial.set_constraint(FAILED, 1.0)
        elif ending.forecast is not None:
            trial.set_user_attr(DOUBT, ending.forecast.deviation)
            self._learn_of(trial, ending.forecast.mean, ending.metrics)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _learn_of(self, trial: optuna.Trial, quality: float, metrics: Mapping[str, Any]) -> None:
        """Let the trial say what it did: to our sampler by its attributes, to Optuna's by a constraint."""
        trial.set_user_attr(QUALITY, quality)
        cost = self.objective.whole_cost(metrics)
        if math.isfinite(cost):
            trial.set_user_attr(COST, cost)
        if self._bound is not None and self.objective.kind == "cheapest-lossless":
            trial.set_constraint(LOSSY, self._bound.quality - quality)

    def _given(self) -> Mapping[str, Any]:
        """Settings that are not the sampler's to choose: those of the file."""
        return self._points.popleft() if self._points else {}

    def _rehearsal(self, number: int) -> Rehearsal | None:
        """What the suggestion of this number is for, if it is one of the last."""
        if not self._rehearsals or number <= self.last - self._rehearsals:
            return None
        count = self.settings.confirm.rungs
        return Rehearsal(self.proof, count, number % count)

    def _ask(self, fixed: Mapping[str, Any]) -> Suggestion:
        """The next suggestion, with some settings given."""
        number = len(self.study.get_trials(deepcopy=False)) + 1
        rehearsal = self._rehearsal(number)
        self.study.sampler = build_sampler(self.settings, self._space, number, self._bound, rehearsal)
        if fixed:
            self.study.enqueue_trial(self._sweep.drawn(fixed))
        trial = self.study.ask(fixed_distributions=self._space)
        # Where all is given Optuna does not ask the sampler, and NSGA-II would count no generation.
        _ = trial.relative_params
        params, unused = self._sweep.meant(trial.params)
        trial.set_user_attr(UNUSED, unused)
        said = _said(params)
        self._tries[said] = self._tries.get(said, 0) + 1
        return Suggestion(number, params, trial, self._tries[said] - 1)


def _said(params: Mapping[str, Any]) -> str:
    """Equal for equal settings."""
    return repr(sorted(params.items()))


def objective_values(metrics: Mapping[str, Any], objectives: Sequence[str]) -> list[float] | None:
    """The objectives of a run with its full budget, or None."""
    values = [float(metrics.get(key, math.nan)) for key in objectives]
    return values if is_final(metrics) and all(map(math.isfinite, values)) else None
