"""The order of a sweep: the baseline, the search, the winners over the seeds.

A machine drifts: it warms up, others use it. A baseline that ran at the start and winners that ran at the end
would make a speedup of that. So the seeds of the baseline and of the controls are spread over the sweep: the
first one begins it (without a baseline there is nothing to search for), the last one runs among the winners.

One searcher hands Ray Tune all of them, so all run in the same reused processes, and there is one thing to
interrupt and to resume. MLflow is the only record: a resumed sweep is planned from the runs found there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune.search import Searcher

from raytrain_speedup.config import Experiment
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.mlflow_log import group_of, is_final
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.search import Search, Suggestion
from raytrain_speedup.tuning.space import SEARCH_SEED, Sweep, SweepSettings
from raytrain_speedup.tuning.winners import Outcome, pick_winners

TRIAL, WINNER, BASELINE = "trial", "winner", "baseline"


@dataclass(frozen=True)
class PlannedRun:
    """A run to be: its name is unique in the sweep and the same when the sweep is resumed.

    Its folder for checkpoints has the id of a Tune trial in its name, which is unique among sittings: only a run
    that goes on gets the folder that it had.
    """

    name: str
    role: str
    experiment: Experiment
    params: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    def config(self) -> dict[str, Any]:
        """What the trial's process receives."""
        return {
            "run_name": self.name,
            "folder": self.folder,
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
        # A run that was begun twice, because MLflow's answer to the first was lost, is the one that finished.
        trials = {run.name: run for run in sorted(past, key=lambda run: run.finished) if run.role == TRIAL}
        self._begun_to_confirm = {
            run.name.rpartition("-seed")[0]: run.group for run in past if run.role == WINNER
        }
        self._search = Search(sweep, list(trials.values()))
        self._suggestions: dict[str, Suggestion] = {}
        self._references = deque(
            (after, run) for after, run in _spread(sweep) if run.name not in self.finished
        )
        self._last: deque[PlannedRun] = deque()
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
        alone = settings.confirm == 0 and len(settings.seeds) == 1
        confirmed = self._confirmed or (alone and self._search.told >= settings.trials)
        return confirmed and not (self._references or self._last or self._running)

    def suggest(self, trial_id: str) -> Any:
        run = self._next(trial_id)
        if not isinstance(run, PlannedRun):
            return run
        begun = self.interrupted.get(run.name)
        run = replace(run, folder=begun.folder if begun else f"{run.name}-{trial_id}")
        self._running[trial_id] = run
        return run.config()

    def _next(self, trial_id: str) -> PlannedRun | str | None:
        """A run, or None to wait for those under way, or FINISHED."""
        if self.failure is not None:
            return str(Searcher.FINISHED)
        while (begun := self._search.told + self._asked()) < self.sweep.settings.trials or self._references:
            if self._references and self._references[0][0] <= begun:
                return self._references.popleft()[1]
            if run := self._suggested(trial_id):
                return run
        if not self._confirmed and not self._asked():
            if any(run.role == BASELINE for run in self._running.values()):
                return None
            self._confirmed = True
            self._last.extend(run for run in self._confirmations() if run.name not in self.finished)
        if self._last:
            return self._last.popleft()
        return Searcher.FINISHED if self._confirmed else None

    def _asked(self) -> int:
        return sum(run.role == TRIAL for run in self._running.values())

    def _suggested(self, trial_id: str) -> PlannedRun | None:
        suggestion = self._search.suggest()
        try:
            experiment = self.sweep.trial(suggestion.params, SEARCH_SEED)
        except UserError as error:  # a combination that neither end of a range had shown
            self.refused.append(str(error))
            self._search.tell(suggestion, "failed", {})
            return None
        self._suggestions[trial_id] = suggestion
        return PlannedRun(f"trial-{suggestion.number:02d}", TRIAL, experiment, suggestion.params)

    def _confirmations(self) -> Iterator[PlannedRun]:
        """The winners, seed by seed, and what is left of the baseline and the controls."""
        settings = self.sweep.settings
        winners = self._winners()
        for seed in settings.seeds:
            if seed not in _early_seeds(settings):
                yield from _references(self.sweep, seed)
            for winner in winners:
                experiment = self.sweep.trial(winner.params, seed)
                yield PlannedRun(f"{winner.name}-seed{seed}", WINNER, experiment, dict(winner.params))

    def _winners(self) -> list[Outcome]:
        """Those that an earlier sitting began to confirm, for more seeds are to be theirs; else the best."""
        settings, runs, begun = self.sweep.settings, self.finished.values(), self._begun_to_confirm
        early = {run.name for _, run in _spread(self.sweep)}  # so that a resumed sweep picks the same winners
        trials = [run for run in runs if run.role == TRIAL]
        before = [run for run in trials if run.name in begun][: settings.confirm]
        return before + pick_winners(
            [run for run in trials if run.group not in begun.values()],
            [run.figures for run in runs if run.role == BASELINE and run.name in early],
            count=settings.confirm - len(before),
            margin=settings.margin,
            objectives=settings.objectives,
        )

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        pass  # Optuna takes no intermediate figures where there are several objectives

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        run = self._running.pop(trial_id)
        if run.role == TRIAL:
            self._search.tell(self._suggestions.pop(trial_id), _ending(result, error), result or {})
        compared = any(other.role == BASELINE for other in self.finished.values())
        if run.role == BASELINE and not compared:
            self.failure = self._lack_of(result or {})
        if result and is_final(result):
            self.finished[run.name] = Outcome(
                run.name, run.role, group_of(run.experiment), run.params, dict(result)
            )

    def _lack_of(self, result: dict) -> str | None:
        """Why nothing can be compared with what the baseline reported."""
        if not is_final(result):
            return str(result.get("error", "its process was lost"))
        lacking = [name for name in self.sweep.settings.objectives if name not in result]
        if not lacking:
            return None
        return f"it has no figure '{lacking[0]}'; expected data to validate on, such as data.val_share=0.1"

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the plan is made again from MLflow."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from MLflow, not from Tune's files")


def _references(sweep: Sweep, seed: int) -> Iterator[PlannedRun]:
    """The baseline and the controls with one seed."""
    for role, keys in {BASELINE: sweep.settings.baseline, **sweep.settings.controls}.items():
        yield PlannedRun(f"{role}-seed{seed}", role, sweep.experiment(keys, seed), dict(keys))


def _early_seeds(settings: SweepSettings) -> tuple[int, ...]:
    """Those of the baseline that run before the winners are known: all but the last, the first in any case."""
    return settings.seeds[: max(1, len(settings.seeds) - 1)]


def _spread(sweep: Sweep) -> Iterator[tuple[int, PlannedRun]]:
    """The references of the early seeds, each with the number of trials that begin before it."""
    early = _early_seeds(sweep.settings)
    for place, seed in enumerate(early):
        for run in _references(sweep, seed):
            yield place * sweep.settings.trials // len(early), run


def _ending(result: dict | None, error: bool) -> str:
    """The state in which a trial came back, as the search is told."""
    if error or not result or "error" in result:
        return "failed"
    return "finished" if is_final(result) else "stopped"
