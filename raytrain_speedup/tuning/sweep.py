"""`speedup sweep`: from a search-space file to a leaderboard, a picture and a schedule.

Trials of one worker run directly in Tune's trial processes, which are reused: the second trial of a process
starts in a hundredth of a second. Trials of several workers run a `TorchTrainer` from a driver function
that holds no CPU of its own (`tune_driver` is a resource of the head node, see cluster.yaml).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import ray
from mlflow.tracking import MlflowClient
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.scaling.cluster import connect, driver_resources
from raytrain_speedup.scaling.group_trial import group_trial
from raytrain_speedup.scaling.storage import inside, is_address, parent_and_name
from raytrain_speedup.scaling.tune_trial import trial
from raytrain_speedup.settings import RunFailed, UserError
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.export import export
from raytrain_speedup.tracking.heartbeat import Heartbeat
from raytrain_speedup.tracking.leaderboard import Row, best, leaderboard, show
from raytrain_speedup.tracking.patience import PatientClient
from raytrain_speedup.tracking.picture import draw
from raytrain_speedup.tuning.callback import SweepCallback
from raytrain_speedup.tuning.live import SweepTable
from raytrain_speedup.tuning.plan import TRIAL, SweepPlan
from raytrain_speedup.tuning.space import MAY_DIFFER_ON_RESUME, AshaSettings, Sweep, load_sweep

Trainable = Callable[[dict[str, Any]], None]
"""Runs one experiment in a Tune trial and reports by `tune.report`. `config["experiment"]` is the experiment
as plain data, `config["run_name"]` the same when a sweep is resumed, `config["storage"]` for checkpoints."""

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the figures go to MLflow
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an epoch without evaluation lacks the objective
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # and the screen shows one table, ours
}


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves behind. `best` is the leaderboard row the schedule was exported from."""

    experiment: str
    tracking_uri: str
    rows: list[Row]
    picture: Path | None
    schedule: Path | None
    best: Row | None


def sweep(
    file: str | Path,
    *,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    trials: int | None = None,
    seed: int | None = None,
    concurrency: int | None = None,
    tracking_uri: str | None = None,
    out: str | Path = ".",
    resume: bool = False,
    console: Console | None = None,
    trainable: Trainable | None = None,
) -> SweepResult:
    """Run a sweep, or go on with one.

    Args:
        file: the search-space file.
        overrides: experiment keys set for every run.
        trials, seed, concurrency: replace those of the file.
        tracking_uri: MLflow; MLFLOW_TRACKING_URI or ./mlflow.db by default.
        out: folder for the picture and the schedule.
        resume: go on with the last sweep of the same question: finished runs are kept, interrupted ones
            run again. More trials or seeds may be asked for, see `space.MAY_DIFFER_ON_RESUME`.
        trainable: what a trial runs; by default one worker in the trial's process or a worker group.

    Raises:
        UserError: for a mistake in the file, before anything runs; where another driver runs the sweep; where
            the baseline fails, and where MLflow does not answer any more.
        KeyboardInterrupt: after Ctrl-C; the runs are marked as interrupted and can be resumed.
    """
    console = console or Console()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed run is a line of the table
    os.environ.update(QUIET)
    loaded = load_sweep(file, overrides, trials=trials, seed=seed, concurrency=concurrency)
    client = store.connect(tracking_uri or loaded.base.tracking.uri)
    name = loaded.base.tracking.experiment or loaded.settings.name
    into = store.experiment_id(client, name)
    parent = _parent(client, loaded, into, name, resume=resume)
    with Heartbeat(client, parent) as heartbeat:
        client.log_dict(parent, loaded.settings.model_dump(mode="json"), "search_space.yaml")
        client.log_text(parent, loaded.base.to_yaml(), "experiment.yaml")
        plan = SweepPlan(loaded, _past(client, name, parent) if resume else ())
        _run(loaded, plan, heartbeat, into, trainable, console)
        if plan.failure is not None:
            client.set_terminated(parent, "FAILED")
            raise RunFailed(
                f"{loaded.settings.name}: the baseline failed, and nothing can be compared: {plan.failure}"
            )
        if not plan.done:
            client.set_terminated(parent, "KILLED")
            console.print("interrupted; the same command with --resume goes on from here")
            raise KeyboardInterrupt
        client.set_terminated(parent, "FINISHED")
        return _conclude(client, name, parent, plan, Path(out), console)


def _run(
    sweep: Sweep,
    plan: SweepPlan,
    heartbeat: Heartbeat,
    into: str,
    trainable: Trainable | None,
    console: Console,
) -> None:
    """Run what is planned, on Ray and before the user's eyes.

    Raises:
        UserError: if MLflow does not answer any more, or another driver has taken over.
    """
    client, settings, scaling = heartbeat.client, sweep.settings, sweep.base.scaling
    table = SweepTable(
        console,
        settings.name,
        total=plan.total,
        done=len(plan.finished),
        quality=next(iter(settings.objectives)),
    )
    callback = SweepCallback(
        client,
        into=into,
        heartbeat=heartbeat,
        margin=settings.margin,
        reopen={run.name: run.run_id for run in plan.interrupted.values()},
        listener=table,
    )
    try:
        with _ray(scaling), table, _terminate_as_interrupt():
            _fit(sweep, plan, callback, trainable or _trainable(scaling), heartbeat.parent)
    finally:  # Tune wraps some errors of a callback in its own and passes over others
        if client.lost is not None:
            raise client.lost from None
        if (other := heartbeat.replaced_by) is not None:
            raise RunFailed(
                f"{settings.name}: process {other.pid} on {other.name} has resumed this sweep while this driver "
                "was not heard of; this one ends and leaves it the runs"
            )


def _conclude(
    client: MlflowClient, name: str, parent: str, plan: SweepPlan, out: Path, console: Console
) -> SweepResult:
    """Leaderboard, picture and schedule."""
    for refusal in plan.refused:
        console.print(f"[yellow]not allowed, and not run:[/yellow] {refusal}")
    rows = leaderboard(name, tracking_uri=client.tracking_uri, parent=parent)
    show(rows, console)
    out.mkdir(parents=True, exist_ok=True)
    label = plan.sweep.settings.name
    picture = draw(rows, out / "leaderboard.png", title=label)
    client.log_artifact(parent, str(picture))
    console.print(f"picture      {picture}", highlight=False, soft_wrap=True)
    chosen, schedule = best(rows), None
    if chosen is not None and plan.sweep.base.distillation is None:
        schedule = out / "schedule.yaml"
        exported = export(chosen.run_id, schedule, tracking_uri=client.tracking_uri)
        console.print(f"schedule     {schedule}: {exported.headline()}", highlight=False, soft_wrap=True)
    console.print(
        f"runs         mlflow ui --backend-store-uri {client.tracking_uri}", highlight=False, soft_wrap=True
    )
    return SweepResult(name, client.tracking_uri, rows, picture, schedule, chosen)


def _fit(sweep: Sweep, plan: SweepPlan, callback: SweepCallback, trainable: Trainable, parent: str) -> None:
    settings, scaling = sweep.settings, sweep.base.scaling
    name = f"{settings.name}-{parent[:8]}"
    storage, _ = parent_and_name(inside(scaling.storage or "runs", name))
    tuner = tune.Tuner(
        tune.with_resources(guarded(trainable), _resources(scaling)),
        param_space={"storage": inside(storage, name)},
        tune_config=tune.TuneConfig(
            search_alg=plan,
            scheduler=_scheduler(settings.scheduler, next(iter(settings.objectives.items()))),
            num_samples=-1,  # the plan says when it is over
            max_concurrent_trials=settings.concurrency,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=scaling.max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def guarded(trainable: Trainable) -> Trainable:
    """A trial whose error is a report: it ends with its reason, its process lives on for the next trial.

    Only the loss of the process is left for Tune to retry; a NaN would come again.
    """

    def run(config: dict[str, Any]) -> None:
        try:
            trainable(config)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            tune.report({"error": reason, "traceback": traceback.format_exc(), "done": True})

    return run


def _trial_name(trial: Trial) -> str:
    return str(trial.config["run_name"])


def _trial_folder(trial: Trial) -> str:
    return str(trial.config["folder"])


def _in_the_trial(scaling: ScalingSettings) -> bool:
    """Whether a trial trains in its own process; a group can do more, and starts more slowly."""
    return scaling.workers == 1 and not is_address(scaling.storage or "")


def _trainable(scaling: ScalingSettings) -> Trainable:
    return trial if _in_the_trial(scaling) else group_trial


def _resources(scaling: ScalingSettings) -> dict[str, float]:
    if _in_the_trial(scaling):
        return {"cpu": scaling.cpus_per_worker, "gpu": scaling.gpus_per_worker}
    return driver_resources()


class SearchOnlyASHA(ASHAScheduler):
    """ASHA by progress, for the trials of the search: the baseline is never stopped, nor a whole run."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        if trial.config["role"] != TRIAL or result.get("progress", 1.0) >= 1:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        """Every rung was passed in `on_trial_result`; a baseline must not be added to one here."""


def _scheduler(settings: AshaSettings, objective: tuple[str, str]) -> TrialScheduler:
    if settings.method == "none":
        return FIFOScheduler()
    metric, mode = objective
    return SearchOnlyASHA(
        time_attr="progress",
        metric=metric,
        mode=mode,
        grace_period=settings.grace,
        max_t=1,
        reduction_factor=settings.reduction,
    )


def _parent(client: PatientClient, sweep: Sweep, into: str, experiment: str, *, resume: bool) -> str:
    """The MLflow run that holds the sweep: a new one, or that of the last sweep of the same question."""
    if not resume:
        tags = {store.SWEEP: sweep.key, "mlflow.runName": sweep.settings.name}
        return str(client.create_run(into, tags=tags).info.run_id)
    found = client.search_runs(
        [into],
        f"tags.`{store.SWEEP}` = '{sweep.key}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found:
        raise UserError(
            f"--resume: MLflow experiment {experiment!r} holds no sweep of these settings; expected the file "
            "and overrides of the sweep that was interrupted (only "
            f"{', '.join(MAY_DIFFER_ON_RESUME)} may differ)"
        )
    return str(found[0].info.run_id)


def _past(client: PatientClient, experiment: str, parent: str) -> list[store.Record]:
    """The runs of earlier sittings, none of them running: this driver holds the sweep."""
    client.update_run(parent, status="RUNNING")
    return [_settled(client, run) for run in store.records(client, experiment, parent=parent)]


def _settled(client: MlflowClient, run: store.Record) -> store.Record:
    """A run that its driver could not end, since it was killed, was interrupted."""
    if run.state != "running":
        return run
    client.set_tag(run.run_id, store.STATE, "interrupted")
    client.set_terminated(run.run_id, "KILLED")
    return replace(run, state="interrupted")


@contextmanager
def _ray(scaling: ScalingSettings) -> Iterator[None]:
    """A Ray session: the one there is, the cluster of RAY_ADDRESS (a `ray job`), or a local one."""
    ours = not ray.is_initialized()
    try:
        connect(scaling)
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which `ray job stop` and schedulers send, as Ctrl-C: end the runs in MLflow first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
