"""Optuna as a sweep asks and tells it: samplers, the history of an earlier run of the sweep, and honest endings.

A trial is COMPLETE only if it spent its budget: one that ASHA stopped has the accuracy of that moment (told as
complete, five of seven "best" trials had been stopped early). One that cannot be run, for lack of memory or
because its settings are refused, violates a constraint: TPE does not look at a trial that is told FAIL, and
goes on asking for the like of it.

Every suggestion has a number, and a sampler of its own that is seeded by it; the suggestions of an earlier
run of the sweep are asked and told again in their order. So a sweep that was interrupted goes on with the points
that it would have had, as far as its trials end in the same order (one at a time they do).
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.space import Sweep, SweepSettings

FAILED = "failed"
"""The constraint that a trial violates which could not be run to its end."""


@dataclass(frozen=True)
class Suggestion:
    """Settings to try, by dotted experiment key; the numbers of a sweep count from 1."""

    number: int
    params: dict[str, Any]
    trial: optuna.Trial


class Search:
    """Suggests settings and learns how they did.

    Args:
        sweep: what is searched and how.
        past: trials of an earlier run of the sweep, named `...-NUMBER`; finished, stopped and failed ones become
            history, interrupted ones are suggested again first.

    Attributes:
        study: Optuna's, in memory.
        told: how many suggestions have come to an end.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Record] = ()) -> None:
        self.settings = sweep.settings
        self.told = 0
        self._space = sweep.distributions()
        self.study = optuna.create_study(
            study_name=sweep.settings.name,
            directions=[_direction(mode) for mode in sweep.settings.objectives.values()],
        )
        self._points = deque(dict(point) for point in sweep.settings.points_to_evaluate)
        self._again: deque[Suggestion] = deque()
        self._repeat({int(trial.name.rpartition("-")[2]): trial for trial in past})

    def suggest(self) -> Suggestion:
        """What to try next."""
        return self._again.popleft() if self._again else self._ask(self._next_point())

    def tell(self, suggestion: Suggestion, state: str, metrics: FinalMetrics | None) -> None:
        """How it ended.

        Args:
            suggestion: one of `suggest`.
            state: finished, stopped (early) or failed, as in `store.Record`.
            metrics: the final metrics, if it finished. A metric that is no number is a failure.
        """
        finished = metrics if state == "finished" else None
        values = None if finished is None else objective_values(finished, list(self.settings.objectives))
        if values is not None:
            self.study.tell(suggestion.trial, values)
        else:
            if state != "stopped":
                suggestion.trial.set_constraint(FAILED, 1.0)
            self.study.tell(suggestion.trial, state=TrialState.PRUNED)
        self.told += 1

    def _next_point(self) -> Mapping[str, Any]:
        return self._points.popleft() if self._points else {}

    def _ask(self, fixed: Mapping[str, Any]) -> Suggestion:
        """The next suggestion, with some settings given."""
        number = len(self.study.get_trials(deepcopy=False)) + 1
        self.study.sampler = build_sampler(self.settings, number)
        if fixed:
            self.study.enqueue_trial(dict(fixed))
        trial = self.study.ask(fixed_distributions=self._space)
        # Where all is given Optuna does not ask the sampler, and NSGA-II would count no generation.
        _ = trial.relative_params
        return Suggestion(number, dict(trial.params), trial)

    def _repeat(self, past: Mapping[int, Record]) -> None:
        """Ask and tell again what an earlier run of the sweep did.

        A number without a record was refused before it was a run, or lost before it was written down. It is
        suggested again; the sampler gives it the settings that it gave it then.
        """
        for number in range(1, max(past, default=0) + 1):
            known = past.get(number)
            suggestion = self._ask(known.params if known else self._next_point())
            tried = [point for point in self._points if point.items() <= suggestion.params.items()]
            if known and tried:
                self._points.remove(tried[0])
            if known is None or known.state == "interrupted":
                self._again.append(suggestion)
            else:
                self.tell(suggestion, known.state, known.metrics)


def objective_values(metrics: FinalMetrics, objectives: Sequence[str]) -> list[float] | None:
    """The objectives of a run, or None where one of them is no number."""
    values = [value for key in objectives if (value := metrics.value(key)) is not None]
    return values if len(values) == len(objectives) and all(map(math.isfinite, values)) else None


def build_sampler(settings: SweepSettings, number: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler for the suggestion of this number; what it knows is in the study."""
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if settings.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, settings.trials // 4)))
    with warnings.catch_warnings():  # multivariate and constant_liar are "experimental" since 2020
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=True,  # trials run at the same time must not be the same trial
            n_startup_trials=min(10, max(4, settings.trials // 3)),
        )


def _direction(mode: str) -> str:
    return "maximize" if mode == "max" else "minimize"
