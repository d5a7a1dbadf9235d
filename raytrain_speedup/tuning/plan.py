"""The order of a sweep: a baseline, the search, the winners against the baseline.

The search has baselines of its own: one begins it (without a baseline there is nothing to search for), one runs
in its middle. They say which trials are worth confirming (`confirmation.py`).

One searcher hands Ray Tune all of them, so all run in the same reused processes, and there is one thing to
interrupt and to resume. MLflow is the only record: a resumed sweep is planned from the runs found there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray.tune.search import Searcher

from raytrain_speedup.engine.final_metrics import FinalMetrics, is_final
from raytrain_speedup.script import ScriptExperiment
from raytrain_speedup.settings import UserError, did_you_mean
from raytrain_speedup.tracking.run_log import group_of
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.callback import own_metrics
from raytrain_speedup.tuning.confirmation import Confirmation, confirmation_plan, most_rounds
from raytrain_speedup.tuning.planned import BASELINE, TRIAL, WINNER, PlannedRun, baseline_run
from raytrain_speedup.tuning.search import Search, Suggestion
from raytrain_speedup.tuning.space import COSTS, SEARCH_SEED, Sweep
from raytrain_speedup.tuning.winners import Outcome, pick_winners

SEARCH_SEEDS = (SEARCH_SEED, SEARCH_SEED + 1)
"""Of the baselines that say which trials reach it: two, since one may be lucky."""


class SweepPlan(Searcher):
    """Hands out the runs of a sweep in their order.

    Args:
        sweep: the search-space file.
        past: the runs of earlier runs of the sweep, none of them running.
        winners: settings to confirm without a search.
        say: is told in a line what is about to be confirmed, and what each look at it finds.
    """

    def __init__(
        self,
        sweep: Sweep,
        past: Sequence[Record] = (),
        *,
        winners: Sequence[Outcome] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        objectives = sweep.settings.objectives
        super().__init__(metric=list(objectives), mode=list(objectives.values()))
        self.sweep, self.say = sweep, say
        self.refused: list[str] = []
        self.finished = {
            run.name: Outcome(run.name, run.role, run.group, run.params, run.final)
            for run in past
            if run.finished
        }
        self.interrupted = {
            run.name: run for run in past if run.state == "interrupted" and run.name not in self.finished
        }
        # A run that was begun twice, because MLflow's answer to the first was lost, is the one that finished.
        trials = {run.name: run for run in sorted(past, key=lambda run: run.finished) if run.role == TRIAL}
        begun = [run for run in past if run.role == WINNER]
        self._begun_to_confirm = {run.name.rpartition("-seed")[0]: run.group for run in begun}
        self._begun_plan = next((run.plan for run in begun), None)
        self._winners = winners
        self._search = Search(sweep, list(trials.values()))
        self._suggestions: dict[str, Suggestion] = {}
        references = [] if winners is not None else list(enumerate(SEARCH_SEEDS))
        self._references = deque(
            (place * sweep.settings.trials // len(SEARCH_SEEDS), run)
            for place, seed in references
            if (run := baseline_run(sweep, seed)).name not in self.finished
        )
        self._next_runs: deque[PlannedRun] = deque()
        self._running: dict[str, PlannedRun] = {}
        self._most_at_once = 1
        self._over = False
        self.confirmation: Confirmation | None = None
        """Of the winners, when the search is over."""
        self.failure: str | None = None
        """Why the baseline failed: there is nothing to compare with, so nothing more is handed out."""

    def __reduce__(self) -> Any:
        return Searcher, ()  # Tune keeps a copy for its own restore; a sweep is resumed from MLflow

    @property
    def total(self) -> int:
        """Runs of the whole sweep, at most."""
        settings = self.sweep.settings
        if self._winners is not None:
            winners, search = len(self._winners), 0
        else:
            winners = min(settings.confirm.winners, settings.trials)
            search = len(SEARCH_SEEDS) + settings.trials
        plan = confirmation_plan(settings, winners, self._begun_plan) if winners else None
        rounds = most_rounds(settings, plan)
        return search + rounds * (1 + winners) + len(settings.seeds) * len(settings.controls)

    @property
    def done(self) -> bool:
        """Whether everything was handed out and came back."""
        return self._over and not self._running

    def suggest(self, trial_id: str) -> Any:
        run = self._next(trial_id)
        if not isinstance(run, PlannedRun):
            return run
        begun = self.interrupted.get(run.name)
        run = replace(run, folder=begun.folder if begun else f"{run.name}-{trial_id}")
        self._running[trial_id] = run
        self._most_at_once = max(self._most_at_once, len(self._running))
        return run.config()

    def _next(self, trial_id: str) -> PlannedRun | str | None:
        """A run, or None to wait for those under way, or FINISHED."""
        if self.failure is not None:
            return str(Searcher.FINISHED)
        while (begun := self._search.told + self._asked()) < self._trials or self._references:
            if self._references and self._references[0][0] <= begun:
                return self._references.popleft()[1]
            if run := self._suggested(trial_id):
                return run
        if not self._next_runs and not self._over:
            if self._running:  # they decide what is next
                return None
            self._go_on()
        return self._next_runs.popleft() if self._next_runs else str(Searcher.FINISHED)

    @property
    def _trials(self) -> int:
        return 0 if self._winners is not None else self.sweep.settings.trials

    def _go_on(self) -> None:
        """Begin the confirmation, or look at it, and line up what is next."""
        if self.confirmation is None:
            self.confirmation = self._begin_confirmation()
        while not self._next_runs:  # rounds of an earlier run of the sweep are only looked at
            runs = self.confirmation.next_runs(self.finished)
            for line in self.confirmation.news():
                self.say(line)
            if not runs:
                self._over = True
                return
            self._next_runs.extend(run for run in runs if run.name not in self.finished)

    def _begin_confirmation(self) -> Confirmation:
        settings = self.sweep.settings
        winners = self._winners if self._winners is not None else self._best()
        plan = confirmation_plan(settings, len(winners), self._begun_plan) if winners else None
        confirmation = Confirmation(self.sweep, winners, plan)
        if winners:
            self.say(confirmation.announcement(self.finished, at_once=self._most_at_once))
        return confirmation

    def _asked(self) -> int:
        return sum(run.role == TRIAL for run in self._running.values())

    def _suggested(self, trial_id: str) -> PlannedRun | None:
        suggestion = self._search.suggest()
        try:
            experiment = self.sweep.trial(suggestion.params, SEARCH_SEED)
        except UserError as error:  # a combination that neither end of a range had shown
            self.refused.append(str(error))
            self._search.tell(suggestion, "failed", None)
            return None
        self._suggestions[trial_id] = suggestion
        return PlannedRun(f"trial-{suggestion.number:02d}", TRIAL, experiment, suggestion.params)

    def _best(self) -> list[Outcome]:
        """Those that an earlier run of the sweep began to confirm, which get more seeds; else the best."""
        settings, runs, begun = self.sweep.settings, self.finished.values(), self._begun_to_confirm
        trials = [run for run in runs if run.role == TRIAL]
        if before := [run for run in trials if run.name in begun]:
            return before
        names = {baseline_run(self.sweep, seed).name for seed in SEARCH_SEEDS}
        return pick_winners(
            trials,
            [run.metrics for run in runs if run.name in names],
            count=settings.confirm.winners,
            objectives=settings.objectives,
        )

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        pass  # Optuna takes no intermediate metrics where there are several objectives

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        run = self._running.pop(trial_id)
        final = FinalMetrics.from_dict(own_metrics(result)) if result and is_final(result) else None
        if run.role == TRIAL:
            self._search.tell(self._suggestions.pop(trial_id), _ending(result, error), final)
        compared = any(other.role == BASELINE for other in self.finished.values())
        if run.role == BASELINE and not compared:
            self.failure = self._lack_of(final, result or {})
        if final is not None:
            self.finished[run.name] = Outcome(run.name, run.role, group_of(run.experiment), run.params, final)

    def _lack_of(self, final: FinalMetrics | None, result: dict) -> str | None:
        """Why nothing can be compared with what the baseline reported."""
        if final is None:
            return str(result.get("error", "its process was lost"))
        lacking = [name for name in self.sweep.settings.objectives if final.value(name) is None]
        if not lacking:
            return None
        if isinstance(self.sweep.base, ScriptExperiment):
            known = sorted(name for name in final.to_dict() if name.startswith("val_") or name in COSTS)
            hint = did_you_mean(lacking[0], known) or f"reported were: {', '.join(known)}"
            return f"the script has no metric '{lacking[0]}', which the search is tuned by; {hint}"
        return f"it has no metric '{lacking[0]}'; expected data to validate on, such as data.val_fraction=0.1"

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the plan is made again from MLflow."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from MLflow, not from Tune's files")


def _ending(result: dict | None, error: bool) -> str:
    """The state in which a trial came back, as the search is told."""
    if error or not result or "error" in result:
        return "failed"
    return "finished" if is_final(result) else "stopped"
