"""The order of a sweep: a baseline, the search, the winners against the baseline.

The search has baselines of its own, which say which trials are worth confirming (`confirmation.py`). Without a
baseline there is nothing to search for, so one begins it. The other runs in its middle, or at once where the search
has to know the bound (`cheapest-lossless`).

A run that fails runs once more, unless it is sure to fail again: a mistake of the user's, or no memory left.

One searcher hands Ray Tune all of them, so all run in the same reused processes, and there is one thing to
interrupt and to resume. MLflow is the only record: a resumed sweep is planned from the runs found there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from raytrain_speedup.tuning.forecast import Forecast
from raytrain_speedup.tuning.library import BaselineLibrary
from raytrain_speedup.tuning.limits import Limits
from raytrain_speedup.tuning.monitor import Monitor
from raytrain_speedup.tuning.objective import Level
from raytrain_speedup.tuning.planned import BASELINE, TRIAL, WINNER, PlannedRun, baseline_run, trial_name
from raytrain_speedup.tuning.search import Ending, Search, Suggestion
from raytrain_speedup.tuning.space import Sweep
from raytrain_speedup.tuning.sweep_settings import COSTS, SEARCH_SEED
from raytrain_speedup.tuning.winners import Outcome, pick_ladder, pick_winners


class SweepPlan(Searcher):
    """Hands out the runs of a sweep in their order.

    Args:
        sweep: the search-space file.
        past: the runs of earlier runs of the sweep, none of them running.
        winners: settings to confirm without a search.
        library: of baselines that need not run again.
        curves: of the past runs of the search, by name, see `past_curves`.
        say: is told in a line what is about to be confirmed, and what each look at it finds.
    """

    def __init__(
        self,
        sweep: Sweep,
        past: Sequence[Record] = (),
        *,
        winners: Sequence[Outcome] | None = None,
        curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        library: BaselineLibrary | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        objectives = sweep.settings.objectives
        super().__init__(metric=list(objectives), mode=list(objectives.values()))
        self.sweep, self.say = sweep, say
        self.objective = sweep.objective
        self.monitor = Monitor(self.objective)
        self._library = library
        self._running: dict[str, PlannedRun] = {}
        self._repeated: deque[PlannedRun] = deque()
        self.refused: list[str] = []
        self.finished = {
            run.name: Outcome(run.name, run.role, run.group, run.params, run.final)
            for run in past
            if run.finished
        }
        self.interrupted = {
            run.name: run for run in past if run.state == "interrupted" and run.name not in self.finished
        }
        begun = [run for run in past if run.role == WINNER]
        self._begun_to_confirm = {run.name.rpartition("-seed")[0]: run.group for run in begun}
        self._begun_plan = next((run.plan for run in begun), None)
        self._winners = winners
        verdicts = confirmation_plan(sweep.settings, 1, self._begun_plan) is not None
        # One after the other, each at the whole error.
        self._climbs = winners is None and verdicts and self.objective.kind == "cheapest-lossless"
        count = sweep.settings.baselines
        baselines = [baseline_run(sweep, SEARCH_SEED + number) for number in range(count)]
        self._level_of = {run.name for run in baselines}
        at_once = self.objective.kind == "cheapest-lossless"
        self._references = deque(
            (0 if at_once else place * sweep.settings.trials // count, run)
            for place, run in enumerate(baselines if winners is None else ())
            if run.name not in self.finished
        )
        self._limits = Limits(
            sweep.settings.budget, sweep.gpus_per_run, parameters=len(sweep.distributions())
        )
        self._settled = self._ended_early = False
        self._learn_level()
        self._search = Search(sweep, level=self.monitor.level)
        self._hear_again(past, curves or {})
        self._look_ahead()
        self._suggestions: dict[str, Suggestion] = {}
        self._failed_once: set[str] = set()
        self._next_runs: deque[PlannedRun] = deque()
        self._most_at_once = 1
        self._over = False
        self.confirmation: Confirmation | None = None
        """Of the winners, when the search is over."""
        self.failure: str | None = None
        """Why the baseline failed: there is nothing to compare with, so nothing more is handed out."""

    def __reduce__(self) -> Any:
        return Searcher, ()  # Tune keeps a copy for its own restore; a sweep is resumed from MLflow

    def _hear_again(self, past: Sequence[Record], curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Learn of earlier runs of the sweep in the order they ran in, and end the search where it ended then."""
        forecasts: dict[str, Forecast] = {}
        reports = {run.name: run.metrics.to_dict() for run in past if run.metrics is not None}
        for run in past:
            for metrics in curves.get(run.name, ()):
                self.monitor.report(run.name, metrics, role=run.role)
            if run.state == "stopped" and curves.get(run.name):
                reports.setdefault(run.name, dict(curves[run.name][-1]))
                if forecast := self.monitor.forecast(run.name):
                    forecasts[run.name] = forecast
        # A run that was begun twice, because the tracker's answer to the first was lost, is the one that finished.
        trials = {run.name: run for run in sorted(past, key=lambda run: run.finished) if run.role == TRIAL}
        for run in (*trials.values(), *(run for run in past if run.role == BASELINE)):
            if run.seed >= SEARCH_SEED:
                self._limits.ran(float(reports.get(run.name, {}).get("wall_seconds", 0.0)))
        for _ in self._search.repeat(list(trials.values()), reports, forecasts):
            self._watch()

    def _watch(self) -> None:
        """Whether the search has settled, after another trial."""
        if self.sweep.settings.budget.patience is None:
            return
        self._limits.best_is(*self._best_yet())
        if not self._settled and (why := self._limits.settled(self._search.last)) is not None:
            self._settled = True
            self._search.end_soon()
            self.say(f"the search ends after {self._search.last} trials: {why}")

    def _learn_level(self) -> None:
        """Once the last baseline of the search has come back: what they reach."""
        to_come = [*self._running.values(), *self._repeated, *(run for _, run in self._references)]
        under_way = {run.name for run in to_come}
        if self.monitor.level is None and not self._level_of & under_way:
            known = [run.report for run in self.finished.values() if run.name in self._level_of]
            self.monitor.level = self.objective.level(known)

    @property
    def total(self) -> int:
        """Runs of the whole sweep, at most."""
        settings = self.sweep.settings
        if self._winners is not None:
            winners, search = len(self._winners), 0
        else:
            winners = min(self._to_pick, settings.trials)
            search = settings.baselines + settings.trials
        at_once = 1 if self._climbs else winners
        plan = confirmation_plan(settings, at_once, self._begun_plan) if winners else None
        rounds = most_rounds(settings, plan)
        return search + rounds * (1 + winners) + len(settings.seeds) * len(settings.controls)

    @property
    def done(self) -> bool:
        """Whether everything was handed out and came back."""
        return self._over and not self._running

    def suggest(self, trial_id: str) -> Any:
        run = self._next(trial_id)
        while isinstance(run, PlannedRun) and self._has_run_elsewhere(run):
            run = self._next(trial_id)
        if not isinstance(run, PlannedRun):
            return run
        if run.name in self._suggestions:  # that of a trial that failed once
            self._suggestions[trial_id] = self._suggestions.pop(run.name)
        begun = self.interrupted.get(run.name)
        run = replace(run, folder=begun.folder if begun else f"{run.name}-{trial_id}")
        self._running[trial_id] = run
        self._most_at_once = max(self._most_at_once, len(self._running))
        return run.config()

    def _has_run_elsewhere(self, run: PlannedRun) -> bool:
        """Whether a baseline is borrowed from an earlier sweep."""
        first = next((other for other in self.finished.values() if other.role == BASELINE), None)
        if run.role != BASELINE or first is None or self._library is None:
            return False
        metrics = self._library.borrow(run, first.metrics)
        if metrics is not None:
            self.say(f"{run.name}: as in an earlier sweep; --fresh-baseline runs it again")
            self._finish(run, metrics)
            self._hear_of_baseline()
        return metrics is not None

    def _hear_of_baseline(self) -> None:
        """One of the search's baselines has come back, or is not needed."""
        self._learn_level()
        if self.monitor.level is not None:
            self._search.learn(self.monitor.level)
            self._look_ahead()
            self._tell_of_a_margin_that_allows_all(self.monitor.level)

    def _tell_of_a_margin_that_allows_all(self, level: Level) -> None:
        """Where a metric of 0 would be within the margin, every setting is lossless."""
        metric = self.objective.quality_metric
        if self.objective.directions[metric] == "max" and 0 <= level.mean <= self.objective.margin:
            self.say(
                f"margin: {self.objective.margin:g} allows any setting, for the baseline's {metric} is "
                f"{level.mean:.3g}; expected a part of that (--margin)"
            )

    def _look_ahead(self) -> None:
        """Which trials those under way have to be cheaper or better than."""
        if self.sweep.settings.scheduler.method == "bound":
            self.monitor.lossless = {
                trial_name(number): (cost, quality) for number, cost, quality in self._search.lossless()
            }

    def _finish(self, run: PlannedRun, metrics: FinalMetrics) -> None:
        self.finished[run.name] = Outcome(run.name, run.role, group_of(run.experiment), run.params, metrics)

    def _next(self, trial_id: str) -> PlannedRun | str | None:
        """A run, or None to wait for those under way, or FINISHED."""
        if self.failure is not None:
            return str(Searcher.FINISHED)
        if self._repeated:
            return self._repeated.popleft()
        while (begun := self._search.told + self._asked()) < self._trials or self._references:
            if self._references and self._references[0][0] <= begun:
                return self._references.popleft()[1]
            if self._is_over():
                break
            if run := self._suggested(trial_id):
                return run
        if not self._next_runs and not self._over:
            if self._running:  # they decide what is next
                return None
            self._go_on()
        return self._next_runs.popleft() if self._next_runs else str(Searcher.FINISHED)

    @property
    def _trials(self) -> int:
        return 0 if self._winners is not None else self._search.last

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

    def _is_over(self) -> bool:
        """Whether the budget of the search ends it before its last trial."""
        begun = self._search.told + self._asked()
        if not self._ended_early and (why := self._limits.reached()) is not None:
            self._ended_early = True
            self.say(f"the search ends after {begun} trials: {why}")
        return self._ended_early or begun >= self._trials

    @property
    def _to_pick(self) -> int:
        """Winners at most."""
        confirm = self.sweep.settings.confirm
        return confirm.rungs if self._climbs else confirm.winners

    def _begin_confirmation(self) -> Confirmation:
        settings = self.sweep.settings
        picked = list(self._winners) if self._winners is not None else self._best()
        at_once = 1 if self._climbs else len(picked)
        plan = confirmation_plan(settings, at_once, self._begun_plan) if picked else None
        confirmation = Confirmation(self.sweep, picked[:at_once], plan, picked[at_once:])
        if picked:
            self.say(confirmation.announcement(self.finished, at_once=self._most_at_once))
        return confirmation

    def _asked(self) -> int:
        return sum(run.role == TRIAL for run in self._running.values())

    def _suggested(self, trial_id: str) -> PlannedRun | None:
        suggestion = self._search.suggest()
        try:
            experiment = self.sweep.trial(suggestion.params, SEARCH_SEED + suggestion.repeat)
        except UserError as error:  # a combination that neither end of a range had shown
            self.refused.append(str(error))
            self._search.tell(suggestion, Ending("failed", {}))
            return None
        self._suggestions[trial_id] = suggestion
        return PlannedRun(trial_name(suggestion.number), TRIAL, experiment, suggestion.params)

    def _best(self) -> list[Outcome]:
        """Those that an earlier run of the sweep began to confirm, which get more seeds; else the best."""
        begun = self._begun_to_confirm
        trials = [run for run in self.finished.values() if run.role == TRIAL]
        picked = self._picked(trials, self._to_pick)
        if begun.keys() <= {run.name for run in picked}:
            return picked
        begun_with = [run for run in trials if run.name in begun]
        return self._from_safe_to_bold(begun_with) if self._climbs else begun_with

    def _best_yet(self) -> tuple[str, float | None]:
        """The cheapest trial that is believed to be lossless, and its cost; where none is, the first that would be
        confirmed."""
        if self.objective.kind == "cheapest-lossless":
            if lossless := self._search.lossless():
                best = min(lossless, key=lambda one: one.cost)
                return trial_name(best.number), best.cost
            if not self._search.believes:
                return "", None
        told = {trial_name(number) for number in self._search.whole}
        trials = [one for one in self.finished.values() if one.name in told]
        return next((best.name for best in self._picked(trials, 1)), ""), None

    def _picked(self, trials: Sequence[Outcome], count: int) -> list[Outcome]:
        beliefs = self._search.beliefs() if self.objective.kind == "cheapest-lossless" else None
        if beliefs is not None and trials:
            drawn = [self.sweep.drawn(trial.params) for trial in trials]
            chances = beliefs.proven(drawn, self._search.proof)
            whole = beliefs.baseline_cost
            return pick_ladder(trials, chances, count=count, objective=self.objective, baseline=whole)
        baselines = [run.report for run in self.finished.values() if run.name in self._level_of]
        picked = pick_winners(trials, baselines, count=count, objective=self.objective)
        return self._from_safe_to_bold(picked) if self._climbs else picked

    def _from_safe_to_bold(self, trials: Sequence[Outcome]) -> list[Outcome]:
        return sorted(trials, key=lambda run: -self.objective.cost(run.report))

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """The scheduler hears of a report before Tune's searcher does, and tells `hear`."""

    def hear(self, trial_id: str, result: dict) -> None:
        """Take in a report. The final one ends a run before its process ends: Tune keeps a process for what it
        knows to be next, and ends the others."""
        run = self._running.get(trial_id)
        if run is None:
            return
        if run.role in (TRIAL, BASELINE):
            self.monitor.report(run.name, result, role=run.role)
        if is_final(result):
            self.on_trial_complete(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        if trial_id not in self._running:  # its final report was heard
            return
        run, result = self._running.pop(trial_id), own_metrics(result or {}, failures=True)
        state = _ending(result, error)
        if state == "failed" and result.get("again") and run.name not in self._failed_once:
            self._failed_once.add(run.name)
            self._repeated.append(run)
            if run.role == TRIAL:
                self._suggestions[run.name] = self._suggestions.pop(trial_id)
            return
        final = FinalMetrics.from_dict(result) if is_final(result) else None
        compared = any(other.role == BASELINE for other in self.finished.values())
        if run.role == BASELINE and not compared:
            self.failure = self._lack_of(final, result)
        if final is not None:
            self._finish(run, final)
        if self.confirmation is None:
            self._limits.ran(float(result.get("wall_seconds", 0.0)))
            if run.role == BASELINE:
                self._hear_of_baseline()
        if run.role == TRIAL:
            forecast = self.monitor.forecast(run.name) if state == "stopped" else None
            self._search.tell(self._suggestions.pop(trial_id), Ending(state, result, forecast))
            self._look_ahead()
            self._watch()

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
