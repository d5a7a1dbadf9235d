"""From a run to the schedule file, with its evidence."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import yaml

from raytrain_speedup.schedule_file import VERSION, Evidence, Schedule, TunedOn, save_schedule
from raytrain_speedup.script import AnyExperiment, load_any_dict
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.leaderboard import Row, rows
from raytrain_speedup.tracking.provenance import package_version
from raytrain_speedup.tracking.run_log import EXPERIMENT_FILE
from raytrain_speedup.tracking.store import Record, short_ids
from raytrain_speedup.tracking.tracker import SCHEDULE_FILE, NotTracked, Tracker

RECENT = 8
ALIAS = "proven"


def export(
    run_id: str,
    out: str | Path,
    tracking_uri: str | None = None,
    *,
    unproven: bool = False,
    force: bool = False,
) -> Schedule:
    """Write the schedule of a run.

    It is also kept with the run (`schedule/schedule.yaml`) and as a version of the schedule
    `<experiment>-schedule`; a proven one gets the alias `ALIAS`, so that a loop can ask for it by name.

    Args:
        run_id: the run, or the beginning of its id as the leaderboard shows it.
        out: the file to write.
        unproven: also where no verdict says that the setting is lossless.
        force: also where another file is there.

    Raises:
        UserError: if there is no such run, if it did not finish, if it was trained without data, if it is not
            proven, or if the file would be overwritten.
    """
    tracker = open_tracker(tracking_uri)
    record = find(tracker, run_id)
    experiment = experiment_of(tracker, record.run_id)
    if experiment.distillation is not None:
        raise UserError(
            f"run {record.run_id[:8]}: trained without data; expected a run whose pruning and curriculum make "
            "a schedule"
        )
    row = next(row for row in rows(store.records(tracker, record.experiment)) if _holds(row, record))
    schedule = Schedule(
        version=VERSION,
        pruning=experiment.pruning,
        curriculum=experiment.curriculum,
        tuned_on=_tuned_on(experiment, record),
        evidence=_evidence(row),
    )
    if not schedule.proven and not unproven:
        raise UserError(
            f"run {record.run_id[:8]}: not proven ({schedule.headline()}); expected a lossless setting. "
            f"`speedup confirm {record.run_id[:8]}` runs the seeds for a verdict, --unproven exports it as it is"
        )
    _keep_others(Path(out), schedule, force=force)
    save_schedule(schedule, out)
    _publish(tracker, record, schedule)
    return schedule


def free_name(path: Path) -> Path:
    """The path, or the first of `schedule-2.yaml`, `schedule-3.yaml` ... that no file has."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def _keep_others(path: Path, schedule: Schedule, *, force: bool) -> None:
    """Nobody's file is overwritten without a word; the same schedule again is nobody's loss."""
    if force or not path.exists():
        return
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == schedule.to_yaml():
        return
    raise UserError(f"{path}: is there already; expected another name ({free_name(path).name}) or --force")


def find(tracker: Tracker, run_id: str) -> Record:
    """The finished run whose id begins so.

    Raises:
        UserError: naming recent runs.
    """
    known = store.records(tracker)
    found = [record for record in known if record.run_id.startswith(run_id)] if run_id else []
    if len(found) == 1 and found[0].finished:
        return found[0]
    if len(found) == 1:
        raise UserError(f"run {run_id}: {found[0].state} ({found[0].reason}); expected a finished run")
    finished = [record for record in found or known if record.finished]
    ids = short_ids(record.run_id for record in known)
    recent = [f"  {ids[run.run_id]}  {run.name}  {run.method}" for run in finished[: -RECENT - 1 : -1]]
    problem = "is the beginning of several runs" if found else "no such run"
    expected = "\n".join(["expected one of:", *recent]) if recent else "there are no finished runs yet"
    raise UserError(f"run {run_id!r}: {problem} at {tracker.uri}; {expected}")


def experiment_of(tracker: Tracker, run_id: str) -> AnyExperiment:
    """The experiment that a run was started with, or that a sweep varies.

    Raises:
        UserError: if its file cannot be read.
    """
    try:
        return load_any_dict(yaml.safe_load(tracker.read_text(run_id, EXPERIMENT_FILE)))
    except NotTracked as error:
        raise UserError(str(error)) from None


def _holds(row: Row, record: Record) -> bool:
    """Whether a row is about the settings of a run (a confirmed trial's own run is not part of its row)."""
    same = (row.experiment, row.sweep, row.method, row.settings)
    return record.run_id in row.run_ids or (
        row.state == "finished" and same == (record.experiment, record.parent, record.method, record.settings)
    )


def _tuned_on(experiment: AnyExperiment, record: Record) -> TunedOn:
    content = experiment.to_dict()
    script = {key: content[key] for key in ("trainable", "code", "settings") if key in content}
    return TunedOn(
        experiment=experiment.name,
        run_id=record.run_id,
        data=content["data"],
        model=content["model"],
        train=content["train"] | script,
        workers=experiment.scaling.most_workers,
        hardware=record.final.hardware or "unknown",
        package_version=package_version(),
    )


def _evidence(row: Row) -> Evidence | None:
    """What the row says, under its own names."""
    if row.comparison is None:
        return None
    found = row.to_dict()
    known = {name: found[name] for name in Evidence.model_fields}
    return Evidence.model_validate(known | {"verdict": row.verdict or "not yet known"})


def _publish(tracker: Tracker, record: Record, schedule: Schedule) -> None:
    """Keep the schedule with its run, and as the newest version by its name; the alias is for those that a
    production loop may take without asking."""
    tracker.log_text(record.run_id, schedule.to_yaml(), SCHEDULE_FILE)
    made = tracker.publish(f"{record.experiment}-schedule", record.run_id)
    if schedule.proven:
        tracker.set_alias(made.name, ALIAS, made.version)
