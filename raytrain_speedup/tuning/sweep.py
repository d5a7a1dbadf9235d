"""`speedup sweep`: from a search-space file to a leaderboard, a plot and a schedule.

Trials of one worker run directly in Tune's trial processes, which are reused: the second trial of a process
starts in a hundredth of a second. Trials of several workers run a `TorchTrainer` from a driver function
that holds no CPU of its own (`tune_driver` is a resource of the head node, see cluster.yaml).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import ray
from pydantic import ValidationError
from rich.console import Console

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.metric import Metric
from raytrain_speedup.scaling.cluster import connect
from raytrain_speedup.scaling.launch import termination_as_interrupt
from raytrain_speedup.settings import RunFailed, UserError, explain
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.export import experiment_of, export, find, free_name
from raytrain_speedup.tracking.heartbeat import Heartbeat
from raytrain_speedup.tracking.leaderboard import (
    DEFAULT_MARGIN,
    Row,
    best,
    fastest_control,
    leaderboard,
    safest,
)
from raytrain_speedup.tracking.outcome import log_outcome
from raytrain_speedup.tracking.plot import plot_leaderboard
from raytrain_speedup.tracking.table import show
from raytrain_speedup.tracking.tracker import Tracker
from raytrain_speedup.tuning.callback import SweepCallback
from raytrain_speedup.tuning.library import BaselineLibrary
from raytrain_speedup.tuning.live import SweepTable
from raytrain_speedup.tuning.parent import (
    find_sweep,
    last_of,
    new_parent,
    past_curves,
    past_runs,
    read_sweep,
    write_sweep,
)
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.planned import TRIAL
from raytrain_speedup.tuning.space import Sweep, baseline_of, default_objectives, load_sweep
from raytrain_speedup.tuning.standing import Standing
from raytrain_speedup.tuning.sweep_settings import ConfirmSettings, SweepSettings
from raytrain_speedup.tuning.trials import QUIET, Trainable, fit, trainable_for
from raytrain_speedup.tuning.winners import Outcome


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves behind. `best` is the leaderboard row the schedule was exported from."""

    experiment: str
    tracking_uri: str
    rows: list[Row]
    plot: Path | None
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
    fresh_baseline: bool = False,
    console: Console | None = None,
    trainable: Trainable | None = None,
) -> SweepResult:
    """Run a sweep, or go on with one.

    Args:
        file: the search-space file.
        overrides: experiment keys set for every run.
        trials, seed, concurrency: replace those of the file.
        tracking_uri: as `open_tracker` takes it; MLFLOW_TRACKING_URI or ./mlflow.db by default.
        out: folder for the plot and the schedule.
        resume: go on with the last sweep of the same question: finished runs are kept, interrupted ones
            run again. More trials or seeds may be asked for, see `space.MAY_DIFFER_ON_RESUME`.
        fresh_baseline: run every baseline, also those that an earlier sweep of the tracker has run, see `library`.
        trainable: what a trial runs; by default one worker in the trial's process or a worker group.

    Raises:
        UserError: for a mistake in the file, before anything runs; where another driver runs the sweep; where
            the baseline fails, and where the tracker does not answer any more.
        KeyboardInterrupt: after Ctrl-C; the runs are marked as interrupted and can be resumed.
    """
    console = console or Console()
    loaded = load_sweep(file, overrides, trials=trials, seed=seed, concurrency=concurrency)
    tracker = open_tracker(tracking_uri or loaded.base.tracking.uri)
    parent = last_of(tracker, loaded) if resume else new_parent(tracker, loaded)
    return _drive(
        tracker,
        loaded,
        parent,
        resume=resume,
        out=Path(out),
        console=console,
        trainable=trainable,
        fresh_baseline=fresh_baseline,
    )


def confirm(
    target: str,
    *,
    max_seeds: int | None = None,
    margin: float | None = None,
    tracking_uri: str | None = None,
    out: str | Path = ".",
    console: Console | None = None,
    trainable: Trainable | None = None,
) -> SweepResult:
    """Run seeds until there is a verdict: on the winners of a sweep, or on the setting of one run.

    Args:
        target: the name of a sweep (its last one is meant), or the beginning of the id of its run, or of
            the id of a run as the leaderboard shows it.
        max_seeds: give up after so many; more than a sweep's plan has extend it.
        margin: points that count as no loss; of a single run only, a sweep's plan has its own.
        tracking_uri, out, console, trainable: as in `sweep`.

    Raises:
        UserError: if there is no such sweep or run, and as `sweep`.
    """
    tracker, console = open_tracker(tracking_uri), console or Console()
    options: dict[str, Any] = {"out": Path(out), "console": console, "trainable": trainable}
    found = find_sweep(tracker, target)
    if found is not None:
        if margin is not None:
            raise UserError(f"--margin: {margin:g} cannot be another than the sweep's; expected none here")
        loaded = _with_seeds(read_sweep(tracker, found), max_seeds)
        return _drive(tracker, loaded, found, resume=True, **options)
    loaded, winner = _of_one_run(tracker, find(tracker, target), margin)
    loaded = _with_seeds(loaded, max_seeds)
    parent = new_parent(tracker, loaded)
    return _drive(tracker, loaded, parent, resume=False, winners=[winner], **options)


def _drive(
    tracker: Tracker,
    sweep: Sweep,
    parent: str,
    *,
    resume: bool,
    out: Path,
    console: Console,
    trainable: Trainable | None,
    winners: list[Outcome] | None = None,
    fresh_baseline: bool = False,
) -> SweepResult:
    """Plan a sweep, run it and conclude it, as its only driver."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed run is a line of the table
    os.environ.update(QUIET)
    name = sweep.tracked_as

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    with Heartbeat(tracker, parent) as heartbeat:
        write_sweep(tracker, parent, sweep)
        past = past_runs(tracker, name, parent) if resume else ()
        curves = past_curves(tracker, past, sweep.objective)
        library = (
            None
            if fresh_baseline
            else BaselineLibrary(tracker, parent, into=name, margin=sweep.settings.margin)
        )
        plan = SweepPlan(sweep, past, winners=winners, curves=curves, library=library, say=say)
        standing = Standing(plan.total, [run for run in past if run.finished])
        _run(sweep, plan, heartbeat, name, trainable, console, standing)
        if plan.failure is not None:
            tracker.end(parent, "failed")
            raise RunFailed(
                f"{sweep.settings.name}: the baseline failed, and nothing can be compared: {plan.failure}"
            )
        if not plan.done:
            tracker.end(parent, "interrupted")
            console.print("interrupted; the same command with --resume goes on from here")
            raise KeyboardInterrupt
        tracker.end(parent, "finished")
        return _conclude(tracker, name, parent, plan, out, console)


def _run(
    sweep: Sweep,
    plan: SweepPlan,
    heartbeat: Heartbeat,
    into: str,
    trainable: Trainable | None,
    console: Console,
    standing: Standing,
) -> None:
    """Run what is planned, on Ray and before the user's eyes.

    Raises:
        UserError: if the tracker does not answer any more, or another driver has taken over.
    """
    tracker, settings, scaling = heartbeat.tracker, sweep.settings, sweep.base.scaling
    quality = Metric(*next(iter(settings.objectives.items())))
    table = SweepTable(console, settings.name, standing=standing, quality=quality)
    callback = SweepCallback(
        tracker,
        into=into,
        heartbeat=heartbeat,
        margin=settings.margin,
        reopen={run.name: run.run_id for run in plan.interrupted.values()},
        listener=table,
        stopped=plan.monitor.stopped,
        ended=standing.end,
    )
    try:
        with _ray(scaling), table, termination_as_interrupt():
            fit(sweep, plan, callback, trainable or trainable_for(scaling), heartbeat.parent)
    finally:  # Tune wraps some errors of a callback in its own and passes over others
        if tracker.lost is not None:
            raise tracker.lost from None
        if (other := heartbeat.replaced_by) is not None:
            raise RunFailed(
                f"{settings.name}: process {other.pid} on {other.name} has resumed this sweep while this driver "
                "was not heard of; this one ends and leaves it the runs"
            )


def _conclude(
    tracker: Tracker, name: str, parent: str, plan: SweepPlan, out: Path, console: Console
) -> SweepResult:
    """Leaderboard, plot and schedule."""
    for refusal in plan.refused:
        console.print(f"[yellow]not allowed, and not run:[/yellow] {refusal}")
    rows = leaderboard(name, tracking_uri=tracker.uri, parent=parent)
    show(rows, console)
    out.mkdir(parents=True, exist_ok=True)
    label = plan.sweep.settings.name
    plot = plot_leaderboard(rows, out / "leaderboard.png", title=label)
    console.print(f"plot      {plot}", highlight=False, soft_wrap=True)
    chosen, schedule = best(rows), None
    log_outcome(tracker, parent, rows, plot)
    if chosen is None:
        console.print(_unproven(rows, name), highlight=False, soft_wrap=True)
    elif plan.sweep.base.distillation is None:
        schedule = free_name(out / "schedule.yaml")
        exported = export(chosen.run_id, schedule, tracking_uri=tracker.uri)
        console.print(f"schedule     {schedule}: {exported.headline()}", highlight=False, soft_wrap=True)
        if schedule.name != "schedule.yaml":
            console.print("             (schedule.yaml was there already, and is left as it is)")
    console.print(f"runs         {tracker.how_to_look(parent)}", highlight=False, soft_wrap=True)
    return SweepResult(name, tracker.uri, rows, plot, schedule, chosen)


def _unproven(rows: Sequence[Row], name: str) -> str:
    """Why there is no schedule, and what would make one."""
    open_rows = [row for row in rows if row.role == "winner" and row.verdict == "not yet known"]
    missing = [row.comparison.look.seeds_missing for row in open_rows if row.comparison is not None]
    known = [seeds for seeds in missing if seeds]
    more = f" (about {min(known)} more)" if known else ""
    lines = ["[bold]no setting is proven lossless[/bold], so there is no schedule"]
    if (control := fastest_control(rows)) is not None:
        lines = ["[bold]no setting is proven lossless[/bold] but controls, so there is no schedule"]
        lines.append(
            f"speedup export {control.run_id[:8]} -o schedule.yaml      writes the fastest, {control.label}"
        )
    if open_rows:
        lines.append(f"speedup confirm {name} --max-seeds N      runs more seeds{more}")
    if (least := safest(rows)) is not None:
        lines.append(f"speedup export {least.run_id[:8]} --unproven      writes the safest one all the same")
    return "\n             ".join(lines)


def _with_seeds(sweep: Sweep, max_seeds: int | None) -> Sweep:
    if max_seeds is None:
        return sweep
    confirm = {**sweep.settings.confirm.model_dump(), "until": "verdict", "max_seeds": max_seeds}
    try:
        changed = ConfirmSettings.model_validate(confirm)
    except ValidationError as error:
        raise explain(error, ConfirmSettings, where="--max-seeds") from None
    return replace(sweep, settings=sweep.settings.model_copy(update={"confirm": changed}))


def _of_one_run(tracker: Tracker, record: store.Record, margin: float | None) -> tuple[Sweep, Outcome]:
    """A sweep without a search: the setting of a run against the baseline of its sweep, or against none."""
    base = experiment_of(tracker, record.run_id)
    if record.parent is None and base.distillation is not None:
        raise UserError(
            f"run {record.run_id[:8]}: trained without data, and has no baseline; expected a run of a sweep"
        )
    of_sweep = {} if record.parent is None else {"baseline": baseline_of(read_sweep(tracker, record.parent))}
    settings = SweepSettings(
        name=record.experiment,
        experiment=base.name,
        trials=0,
        confirm=ConfirmSettings(winners=1),
        margin=margin
        if margin is not None
        else record.margin
        if record.margin is not None
        else DEFAULT_MARGIN,
        objectives=default_objectives(base),
        **of_sweep,
    )
    tracked = base.with_overrides({"tracking.experiment": record.experiment})
    winner = Outcome(f"run-{record.run_id[:8]}", TRIAL, record.group, {}, record.final)
    return Sweep(settings, tracked), winner


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
