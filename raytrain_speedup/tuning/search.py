"""Optuna behind Ray Tune: samplers, the history of an earlier sitting, and honest endings.

Ray's own wrapper tells Optuna that a trial stopped by ASHA was complete, with its accuracy of that moment:
of seven "best" trials five had been stopped early. Here only a trial that spent its budget is complete.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from raytrain_speedup.tracking.mlflow_log import is_final
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.space import Sweep, SweepSettings


class Search(OptunaSearch):
    """Suggests settings by dotted experiment key.

    Args:
        sweep: what is searched and how.
        past: trials of an earlier sitting; finished, stopped and failed ones become history, interrupted
            ones are suggested again first.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Record] = ()) -> None:
        settings, space = sweep.settings, sweep.distributions()
        storage = optuna.storages.InMemoryStorage()
        directions = [_direction(mode) for mode in settings.objectives.values()]
        study = optuna.create_study(study_name=settings.name, storage=storage, directions=directions)
        for trial in past:
            if trial.state == "interrupted":
                study.enqueue_trial(dict(trial.params))
            else:
                study.add_trial(_told(trial, space, list(settings.objectives)))
        for point in settings.points_to_evaluate:
            if not any(point.items() <= trial.params.items() for trial in past):
                study.enqueue_trial(point)
        super().__init__(
            space,
            metric=list(settings.objectives),
            mode=list(settings.objectives.values()),
            sampler=build_sampler(settings, past=len(past)),
            study_name=settings.name,
            storage=storage,
        )

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Tell COMPLETE for a spent budget, FAIL for an error or a figure that is no number, else PRUNED."""
        values = objective_values(result or {}, self.metric)
        failed = error or "error" in (result or {}) or (values is None and is_final(result or {}))
        super().on_trial_complete(trial_id, result if values and not failed else None, error=failed)


def objective_values(figures: Mapping[str, Any], objectives: Sequence[str]) -> list[float] | None:
    """The objectives of a run with its full budget, or None."""
    values = [float(figures.get(key, math.nan)) for key in objectives]
    return values if is_final(figures) and all(map(math.isfinite, values)) else None


def build_sampler(settings: SweepSettings, *, past: int = 0) -> optuna.samplers.BaseSampler:
    """Optuna's sampler, seeded; a later sitting draws other numbers than the first."""
    seed = settings.seed + past
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


def _told(
    trial: Record, space: Mapping[str, optuna.distributions.BaseDistribution], objectives: Sequence[str]
) -> optuna.trial.FrozenTrial:
    values = objective_values(trial.figures, objectives) if trial.finished else None
    stopped = TrialState.PRUNED if trial.state == "stopped" else TrialState.FAIL
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if values else stopped,
        values=values,
        params=dict(trial.params),
        distributions=dict(space),
    )
