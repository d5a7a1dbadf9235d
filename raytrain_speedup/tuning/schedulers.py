"""Which trials of a search Ray Tune stops early; a baseline or a winner never, nor a whole run."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.planned import TRIAL
from raytrain_speedup.tuning.sweep_settings import SchedulerSettings

GO_ON, STOP = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP)
RANK = "rank"


def build_scheduler(settings: SchedulerSettings, plan: SweepPlan) -> TrialScheduler:
    """The scheduler that a search-space file asks for."""
    if settings.method == "asha":
        return RankedASHA(
            plan,
            time_attr="progress",
            metric=RANK,
            mode="max",
            grace_period=settings.grace,
            max_t=1,
            reduction_factor=settings.reduction,
        )
    return ByTheBound(plan, settings)


class ByTheBound(FIFOScheduler):
    """Stops a trial that will hardly reach the bound, or is dearer than a finished one as good; without a method,
    none."""

    def __init__(self, plan: SweepPlan, settings: SchedulerSettings) -> None:
        super().__init__()
        self._plan, self._settings = plan, settings

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()  # Tune keeps a copy for its own restore; a sweep is resumed from its tracker

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        name, role = trial.config["run_name"], trial.config["role"]
        self._plan.hear(trial.trial_id, result)
        progress = result.get("progress", 1.0)
        if self._settings.method != "bound" or role != TRIAL or not self._settings.grace <= progress < 1:
            return GO_ON
        superfluous = self._plan.monitor.is_superfluous(name, result, chance=self._settings.chance)
        return STOP if superfluous else GO_ON


class RankedASHA(ASHAScheduler):
    """ASHA by progress: those as good as the baseline at equal progress come first, ranked by their cost."""

    def __init__(self, plan: SweepPlan, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._plan = plan

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        self._plan.hear(trial.trial_id, result)
        progress = result.get("progress", 1.0)
        if trial.config["role"] != TRIAL or not 0 < progress < 1:
            return GO_ON
        ranked = {**result, RANK: self._plan.monitor.rank(result)}
        decision = str(super().on_trial_result(tune_controller, trial, ranked))
        if decision == STOP:
            self._plan.monitor.stopped[trial.config["run_name"]] = f"behind the others at {progress:.0%}"
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        """Every rung was passed in `on_trial_result`; a baseline must not be added to one here."""
