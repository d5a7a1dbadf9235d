"""The order of a sweep: baseline and controls over the seeds, the search, the winners over the seeds.

One searcher hands Ray Tune all of them, so all run in the same reused processes, and there is one thing to
interrupt and to resume. MLflow is the only record: a resumed sweep is planned from the runs found there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from raytrain_speedup.config import Experiment
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.mlflow_log import group_of, is_final
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.search import Search
from raytrain_speedup.tuning.space import Sweep
from raytrain_speedup.tuning.winners import Outcome, pick_winners

TRIAL, WINNER, BASELINE = "trial", "winner", "baseline"


@dataclass(frozen=True)
class PlannedRun:
    """A run to be: its name is unique in the sweep and the same when the sweep is resumed."""

    name: str
    role: str
    experiment: Experiment
    params: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """What the trial's process receives."""
        return {
            "run_name": self.name,
            "role": self.role,
            "params": self.params,
            "experiment": self.experiment.shipped(),
        }


class SweepPlan(Searcher):
    """Hands out the runs of a sweep in their order.

    Args:
        sweep: the search-space file.
        past: the runs of earlier sittings, none of them running.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Record] = ()) -> None:
        objectives = sweep.settings.objectives
        super().__init__(metric=list(objectives), mode=list(objectives.values()))
        self.sweep = sweep
        self.refused: list[str] = []
        self.finished = {
            run.name: Outcome(run.name, run.role, run.group, run.params, run.figures)
            for run in past
            if run.finished
        }
        self.interrupted = {
            run.name: run for run in past if run.state == "interrupted" and run.name not in self.finished
        }
        trials = {run.name: run for run in past if run.role == TRIAL}
        self._told = sum(run.state != "interrupted" for run in trials.values())
        self._number = max((_number(name) for name in trials), default=0)
        self._search = Search(sweep, list(trials.values()))
        self._fixed = deque(run for run in _references(sweep) if run.name not in self.finished)
        self._running: dict[str, PlannedRun] = {}
        self._confirmed = False
        self.failure: str | None = None
        """Why the baseline failed: there is nothing to compare with, so nothing more is handed out."""

    @property
    def total(self) -> int:
        """Runs of the whole sweep, at most."""
        settings = self.sweep.settings
        sides = 1 + len(settings.controls) + min(settings.confirm, settings.trials)
        return settings.trials + sides * len(settings.seeds)

    @property
    def done(self) -> bool:
        """Whether everything was handed out and came back."""
        settings = self.sweep.settings
        # Where nothing is to be confirmed, nobody asks for more after the last trial.
        confirmed = self._confirmed or (settings.confirm == 0 and self._told >= settings.trials)
        return confirmed and not self._fixed and not self._running

    def suggest(self, trial_id: str) -> Any:
        run = self._next(trial_id)
        if isinstance(run, PlannedRun):
            self._running[trial_id] = run
            return run.config()
        return run

    def _next(self, trial_id: str) -> PlannedRun | str | None:
        """A run, or None to wait for those under way, or FINISHED."""
        if self.failure is not None:
            return str(Searcher.FINISHED)
        while not self._fixed and self._told + self._asked() < self.sweep.settings.trials:
            if run := self._suggested(trial_id):
                return run
        if not self._fixed and not self._confirmed and not self._asked():
            if any(run.role == BASELINE for run in self._running.values()):
                return None
            self._confirmed = True
            self._fixed.extend(run for run in self._confirmations() if run.name not in self.finished)
        if self._fixed:
            return self._fixed.popleft()
        return Searcher.FINISHED if self._confirmed else None

    def _asked(self) -> int:
        return sum(run.role == TRIAL for run in self._running.values())

    def _suggested(self, trial_id: str) -> PlannedRun | None:
        params = self._search.suggest(trial_id)
        try:
            experiment = self.sweep.trial(params, self.sweep.search_seed)
        except UserError as error:  # a combination that neither end of a range had shown
            self.refused.append(str(error))
            self._search.on_trial_complete(trial_id, error=True)
            self._told += 1
            return None
        again = [name for name, run in self.interrupted.items() if run.params == params]
        if not again:
            self._number += 1
        return PlannedRun(again[0] if again else f"trial-{self._number:02d}", TRIAL, experiment, params)

    def _confirmations(self) -> Iterator[PlannedRun]:
        settings = self.sweep.settings
        runs = self.finished.values()
        winners = pick_winners(
            [run for run in runs if run.role == TRIAL],
            [run.figures for run in runs if run.role == BASELINE],
            count=settings.confirm,
            margin=settings.margin,
            objectives=settings.objectives,
        )
        for seed in settings.seeds:
            for winner in winners:
                experiment = self.sweep.trial(winner.params, seed)
                yield PlannedRun(f"{winner.name}-seed{seed}", WINNER, experiment, dict(winner.params))

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        pass  # Optuna takes no intermediate figures where there are several objectives

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        run = self._running.pop(trial_id)
        if run.role == TRIAL:
            self._told += 1
            self._search.on_trial_complete(trial_id, result, error)
        if run.role == BASELINE and not (result and is_final(result)):
            self.failure = str((result or {}).get("error", "its process was lost"))
        if result and is_final(result):
            self.finished[run.name] = Outcome(
                run.name, run.role, group_of(run.experiment), run.params, dict(result)
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the plan is made again from MLflow."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from MLflow, not from Tune's files")


def _references(sweep: Sweep) -> Iterator[PlannedRun]:
    """The baseline over the seeds, then the controls."""
    settings = sweep.settings
    for role, keys in {BASELINE: settings.baseline, **settings.controls}.items():
        for seed in settings.seeds:
            yield PlannedRun(f"{role}-seed{seed}", role, sweep.experiment(keys, seed), dict(keys))


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
