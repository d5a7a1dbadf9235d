"""What the driver does when a trial says something: write it down, and show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS

from raytrain_speedup.engine.final_metrics import FinalMetrics, is_final
from raytrain_speedup.engine.statistics.verdict import Plan
from raytrain_speedup.scaling.board import NodeTakenBack, end_of
from raytrain_speedup.scaling.trial_notes import TrialNotes
from raytrain_speedup.script import AnyExperiment, load_any_dict
from raytrain_speedup.tracking.heartbeat import Heartbeat
from raytrain_speedup.tracking.run_log import RunLog, settings_of
from raytrain_speedup.tracking.store import Record, record_of
from raytrain_speedup.tracking.tracker import State, Tracker

TUNES_OWN = {*AUTO_RESULT_KEYS, "done", "trial_id", "experiment_tag", "should_checkpoint"}
FAILURE = {"error", "traceback", "again"}
"""What a trial reports in place of metrics when it fails, see `sweep.guarded`."""


class Listener(Protocol):
    """Hears of the runs of a sweep: `name` is the run's, `state` one of `store.Record`'s, or waiting for a
    place to go on; restarted and warning are news of one that runs on. The settings are told when it begins."""

    def __call__(
        self, name: str, state: str, metrics: Mapping[str, Any], reason: str = "", settings: str = ""
    ) -> None: ...


class SweepCallback(Callback):
    """Writes every trial as a run of the sweep, from the one process that outlives them all.

    Args:
        tracker: where to.
        into: name of the tracker's experiment.
        heartbeat: holds the sweep's own run; nothing is written once another driver has it.
        margin: of the sweep, kept with every run for the leaderboard.
        reopen: run name to the run to go on with.
        listener: is told the same.
        stopped: why a trial was stopped, by name of its run.
        ended: is given each run that has ended, as it was written down, before the listener hears of it.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        into: str,
        heartbeat: Heartbeat,
        margin: float,
        reopen: Mapping[str, str],
        listener: Listener,
        stopped: Mapping[str, str],
        ended: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.tracker, self.stopped = tracker, stopped
        self.into, self.heartbeat, self.margin = into, heartbeat, margin
        self.reopen = dict(reopen)
        self.listener, self.ended = listener, ended
        self._logs: dict[str, RunLog] = {}
        self._notes: TrialNotes | None = None

    def follow(self, board: Any) -> None:
        """Tell the listener what the workers of trials pin to a `Board`; None where there is none."""
        self._notes = None if board is None else TrialNotes(board, self._tell)

    def _tell(self, run: str, state: str, line: str) -> None:
        self.listener(run, state, {}, line)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._notes is not None:
            self._notes.pass_on()

    def __reduce__(self) -> Any:
        return Callback, ()  # Tune keeps a copy for its own restore; a sweep is resumed from its tracker

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id in self._logs or self.heartbeat.replaced_by is not None:  # a retry starts again
            return
        experiment = load_any_dict(trial.config["experiment"])
        self._logs[trial.trial_id] = self._open(trial.config, experiment)
        settings = settings_of(experiment, trial.config["params"])
        self.listener(trial.config["run_name"], "running", {}, settings=settings)

    def _open(self, config: Mapping[str, Any], experiment: AnyExperiment) -> RunLog:
        name = config["run_name"]
        if name in self.reopen:
            return RunLog.reopen(self.tracker, self.reopen.pop(name), experiment)
        return RunLog.start(
            self.tracker,
            experiment,
            name=name,
            into=self.into,
            role=config["role"],
            parent=self.heartbeat.parent,
            params=config["params"],
            margin=self.margin,
            plan=None if config["plan"] is None else Plan.from_dict(config["plan"]),
            folder=config["folder"],
        )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        metrics = own_metrics(result)
        log = self._logs.get(trial.trial_id)
        if log is None or self.heartbeat.replaced_by is not None:
            return
        if "error" in result:
            self.tracker.log_text(log.run_id, str(result.get("traceback", "")), "error.txt")
            self._end(trial, "failed", str(result["error"]))
        elif is_final(metrics):
            log.finish(FinalMetrics.from_dict(metrics))
            del self._logs[trial.trial_id]
            self.ended(record_of(self.tracker.run(log.run_id)))
            self.listener(trial.config["run_name"], "finished", metrics)
        else:
            log.epoch(metrics)
            self.listener(trial.config["run_name"], "running", metrics)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune begins a trial again whose process is gone."""
        if trial.trial_id in self._logs:
            if self._notes is not None:
                self._notes.forget(trial.config["run_name"])
            reason = f"{why_gone(trial)}; it goes on from its last checkpoint"
            self.listener(trial.config["run_name"], "waiting", {}, reason)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, "stopped", self.stopped.get(trial.config["run_name"], ""))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, "failed", last_line(trial))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        if self._notes is not None:
            self._notes.pass_on(now=True)
        for trial in trials:
            self._end(trial, "interrupted", "")

    def _end(self, trial: Trial, state: State, reason: str) -> None:
        """End the run of a trial that has not ended yet."""
        log = self._logs.pop(trial.trial_id, None)
        if log is not None and self.heartbeat.replaced_by is None:
            log.end(state, reason)
            self.ended(record_of(self.tracker.run(log.run_id)))
            self.listener(trial.config["run_name"], state, own_metrics(trial.last_result), reason)


def own_metrics(result: Mapping[str, Any], *, failures: bool = False) -> dict[str, Any]:
    """A Tune result without what Tune added, and without what a failed trial reports unless it is asked for."""
    foreign = TUNES_OWN if failures else TUNES_OWN | FAILURE
    return {key: value for key, value in result.items() if key not in foreign}


def why_gone(trial: Trial) -> str:
    """Why the process of a trial ended, which Tune begins again."""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # it is of another process, and a line for the user
        return "its process was lost"
    cause = getattr(error, "cause", error)
    if isinstance(cause, NodeTakenBack) or not isinstance(cause, RayActorError):
        return str(cause).strip().splitlines()[-1]
    return end_of([cause], "the trial")


def last_line(trial: Trial) -> str:
    """What a trial that died had to say."""
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1] if lines else "the trial's process was lost"
