"""The run that holds a sweep: made, found again, and read back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import yaml

from raytrain_speedup.settings import UserError, flatten
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.export import experiment_of
from raytrain_speedup.tracking.provenance import provenance
from raytrain_speedup.tracking.run_log import EXPERIMENT_FILE, LONGEST_PARAM
from raytrain_speedup.tracking.tracker import EPOCH, NotTracked, Tracker
from raytrain_speedup.tuning.objective import Objective
from raytrain_speedup.tuning.planned import BASELINE, TRIAL
from raytrain_speedup.tuning.space import MAY_DIFFER_ON_RESUME, Sweep
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED, SweepSettings

NO_NAME = re.compile(r"[^\w\-./: ]")
"""Characters that MLflow does not take in the name of a parameter."""

SPACE_FILE = "search_space.yaml"
"""The file of the run with the sweep's settings; what they vary is in `EXPERIMENT_FILE`."""


def new_parent(tracker: Tracker, sweep: Sweep) -> str:
    """A new run that holds the sweep."""
    tags = {store.SWEEP: sweep.key, store.ROLE: "sweep"} | provenance()
    run_id = tracker.start(sweep.tracked_as, sweep.settings.name, tags)
    tracker.log_params(run_id, parameters(sweep.settings))
    return run_id


def parameters(settings: SweepSettings) -> dict[str, str]:
    """What a page of the tracker shows of a sweep: what its file says, and what is searched on a line each."""
    said = settings.model_dump(mode="json", exclude_defaults=True)
    searched = {key: str(value) for key, value in said.pop("search", {}).items()}
    flat = flatten(said | {"search": searched})
    return {NO_NAME.sub("", key): str(value)[:LONGEST_PARAM] for key, value in flat.items()}


def write_sweep(tracker: Tracker, parent: str, sweep: Sweep) -> None:
    """Keep the sweep with its run, for `read_sweep`."""
    settings = yaml.safe_dump(sweep.settings.model_dump(mode="json"), sort_keys=False)
    tracker.log_text(parent, settings, SPACE_FILE)
    tracker.log_text(parent, sweep.base.to_yaml(), EXPERIMENT_FILE)


def last_of(tracker: Tracker, sweep: Sweep) -> str:
    """The run of the last sweep of the same question."""
    found = tracker.runs(sweep.tracked_as, tag=store.SWEEP, value=sweep.key)
    if not found:
        raise UserError(
            f"--resume: experiment {sweep.tracked_as!r} holds no sweep of these settings; expected the file "
            "and overrides of the sweep that was interrupted (only "
            f"{', '.join(MAY_DIFFER_ON_RESUME)} may differ)"
        )
    return found[-1].run_id


def find_sweep(tracker: Tracker, target: str) -> str | None:
    """The last sweep of a name, or the one whose run's id begins so."""
    for run in reversed(tracker.runs(tag=store.SWEEP)):
        if run.name == target or (len(target) >= 6 and run.run_id.startswith(target)):
            return run.run_id
    return None


def read_sweep(tracker: Tracker, parent: str) -> Sweep:
    """A sweep as its run has it.

    Raises:
        UserError: if its files cannot be read.
    """
    try:
        settings = yaml.safe_load(tracker.read_text(parent, SPACE_FILE))
    except NotTracked as error:
        raise UserError(str(error)) from None
    return Sweep(SweepSettings.model_validate(settings), experiment_of(tracker, parent))


def past_runs(tracker: Tracker, experiment: str, parent: str) -> list[store.Record]:
    """The runs of earlier runs of the sweep, none of them running: this driver holds the sweep."""
    tracker.reopen(parent)
    return [_settled(tracker, run) for run in store.records(tracker, experiment, parent=parent)]


def past_curves(
    tracker: Tracker, past: Iterable[store.Record], objective: Objective
) -> dict[str, list[dict[str, float]]]:
    """The reports of the runs of an earlier search, by name of the run, as far as an objective needs them."""
    names = ("progress", objective.quality_metric, objective.cost_metric, "wall_seconds")
    return {
        run.name: _reports(tracker, run.run_id, names)
        for run in past
        if run.role in (TRIAL, BASELINE) and run.state in ("finished", "stopped")
        if run.seed >= SEARCH_SEED
    }


def _reports(tracker: Tracker, run_id: str, names: Iterable[str]) -> list[dict[str, float]]:
    by_step: dict[int, dict[str, float]] = {}
    for name in names:
        for step, value in tracker.curve(run_id, EPOCH + name):
            by_step.setdefault(step, {})[name] = value
    return [by_step[step] for step in sorted(by_step)]


def _settled(tracker: Tracker, run: store.Record) -> store.Record:
    """A run that its driver could not end, since it was killed, was interrupted."""
    if run.state != "running":
        return run
    tracker.set_tags(run.run_id, {store.STATE: "interrupted"})
    tracker.end(run.run_id, "interrupted")
    return replace(run, state="interrupted")
