"""A sweep as a study of Optuna's, made from the runs in the tracker: for importances, and for optuna-dashboard.

The tracker stays the only record. The study is a copy for whoever wants Optuna's own tools: values, states,
intermediate values, and what it has no place for as attributes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.leaderboard import Row, rows
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tracking.tracker import EPOCH, Tracker
from raytrain_speedup.tuning.parent import find_sweep, read_sweep
from raytrain_speedup.tuning.planned import TRIAL
from raytrain_speedup.tuning.search import objective_values
from raytrain_speedup.tuning.space import Sweep

MILLISECONDS = 1000
ENOUGH_TRIALS, ENOUGH_FOR_A_FOREST = 4, 500
STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "interrupted": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def study_of(
    sweep: Sweep,
    records: Sequence[Record],
    *,
    found: Sequence[Row] = (),
    storage: str | None = None,
    tracker: Tracker | None = None,
) -> optuna.Study:
    """A study with the trials of a sweep, in the order in which they were suggested.

    Args:
        records: of the sweep; those that are no trials are passed over.
        found: the leaderboard, for each trial's speedup and difference.
        storage: Optuna's URL; in memory by default.
        tracker: has the curves, which become intermediate values; without it there are none.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line per trial is no news
    objectives = sweep.settings.objectives
    study = optuna.create_study(
        study_name=sweep.settings.name,
        storage=storage,
        directions=["maximize" if mode == "max" else "minimize" for mode in objectives.values()],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(objectives))
    by_run = {run_id: row for row in found for run_id in row.run_ids}
    for record in sorted((one for one in records if one.role == TRIAL), key=lambda one: one.name):
        study.add_trial(_trial(sweep, record, by_run.get(record.run_id), tracker))
    return study


def export_study(tracker: Tracker, target: str, out: Path) -> optuna.Study:
    """Write the study of a sweep as a SQLite file, for `optuna-dashboard sqlite:///FILE`.

    Args:
        target: the sweep's name (its last one is meant), or the beginning of the id of its run.

    Raises:
        UserError: if there is no such sweep, or a file already.
    """
    parent = find_sweep(tracker, target)
    if parent is None:
        known = sorted({run.name for run in tracker.runs(tag=store.SWEEP)})
        raise UserError(
            f"{target}: no such sweep at {tracker.uri}; expected one of: {', '.join(known) or 'none yet'}"
        )
    if out.exists():
        raise UserError(f"{out}: is there already; expected the name of a new file")
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep, experiment = read_sweep(tracker, parent), tracker.run(parent).experiment
    records = store.records(tracker, experiment, parent=parent)
    found = rows(records)
    study = study_of(sweep, records, found=found, storage=f"sqlite:///{out.absolute()}", tracker=tracker)
    for key, value in _about(sweep, found, tracker).items():
        study.set_user_attr(key, value)
    return study


def importances(sweep: Sweep, records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """By objective, the fraction of its variation over the trials that each searched key explains (fANOVA, Hutter
    et al. 2014); empty where too few finished, or nothing varies.

    Of very many trials some are taken, evenly: the forest that is grown over them would take minutes.
    """
    finished = [record for record in records if record.role == TRIAL and record.finished]
    study = study_of(sweep, finished[:: len(finished) // ENOUGH_FOR_A_FOREST + 1])
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    varied = [
        (place, objective)
        for place, objective in enumerate(sweep.settings.objectives)
        if len(complete) >= ENOUGH_TRIALS and len({trial.values[place] for trial in complete}) > 1
    ]
    found = {objective: _importances(study, place) for place, objective in varied}
    return {objective: fractions for objective, fractions in found.items() if fractions}


def _importances(study: optuna.Study, place: int) -> dict[str, float]:
    return optuna.importance.get_param_importances(
        study,
        evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        target=lambda trial: trial.values[place],
    )


def _trial(sweep: Sweep, record: Record, row: Row | None, tracker: Tracker | None) -> FrozenTrial:
    space = sweep.distributions()
    searched = {key: value for key, value in record.params.items() if key in sweep.settings.search}
    params = sweep.drawn(searched)
    values = (
        objective_values(record.final.to_dict(), list(sweep.settings.objectives)) if record.finished else None
    )
    state = STATES[record.state]
    if state is TrialState.COMPLETE and values is None:  # a metric that is no number
        state = TrialState.FAIL
    quality = next(iter(sweep.settings.objectives))
    curve = [] if tracker is None else tracker.curve(record.run_id, EPOCH + quality)
    trial = create_trial(
        state=state,
        values=values,
        params=params,
        distributions={key: space[key] for key in params},
        intermediate_values=dict(curve),
        user_attrs=_attributes(record, row),
    )
    trial.datetime_start = datetime.fromtimestamp(record.started / MILLISECONDS)
    if state.is_finished():
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=record.wall_seconds)
    return trial


def _attributes(record: Record, row: Row | None) -> dict[str, Any]:
    """What Optuna has no place for; what is not known is left out."""
    found = {
        "run": record.run_id,
        "name": record.name,
        "state": record.state,
        "reason": record.reason,
        "settings": record.settings,
        "seed": record.seed,
        "speedup": None if row is None else row.speedup,
        "difference": None if row is None else row.difference,
        "wall_seconds": record.wall_seconds,
        "hardware": "" if record.metrics is None else record.metrics.hardware,
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


def _about(sweep: Sweep, found: Sequence[Row], tracker: Tracker) -> Mapping[str, Any]:
    """The sweep's own attributes: what was asked, where its runs are, and what was confirmed."""
    judged = [row for row in found if row.verdict is not None]
    return {
        "about": sweep.settings.about,
        "margin": sweep.settings.margin,
        "tracker": tracker.uri,
        "verdicts": {f"{row.label} {row.settings}".strip(): row.verdict for row in judged},
    }
