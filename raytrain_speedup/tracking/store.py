"""What a run says when it is read back from a tracker, and the tags that say it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from raytrain_speedup.engine.final_metrics import TEXTS, FinalMetrics
from raytrain_speedup.engine.statistics.verdict import Plan
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.tracker import OURS, Entry, Tracker

ROLE, STATE, SEED, METHOD, SETTINGS = (
    f"{OURS}{name}" for name in ("role", "state", "seed", "method", "settings")
)
GROUP, PARAMS, REASON, SWEEP, MARGIN, PLAN = (
    f"{OURS}{name}" for name in ("group", "params", "reason", "sweep", "margin", "plan")
)
FOLDER, DRIVER, VERDICT, DATA, MODEL, SPENT = (
    f"{OURS}{name}" for name in ("folder", "driver", "verdict", "data", "model", "spent_seconds")
)
COMMAND, COMMIT, USER, PACKAGE = (
    f"{OURS}{name}" for name in ("command", "commit", "user", "package_version")
)
SHORTEST_ID = 8


@dataclass(frozen=True)
class Record:
    """A run as it was logged.

    Attributes:
        role: `baseline`, a control's name, `trial`, `winner`, or `run` for a single `speedup train`.
        state: running, finished, stopped (early), failed or interrupted.
        group: equal for runs that differ in their seed alone.
        metrics: the final ones; None of a run that has not finished.
        params: what the search chose, by experiment key.
        plan: of the confirmation that this run is a part of.
        folder: name of a sweep's run's own folder for checkpoints; an interrupted run goes on in it.
        data, model: of the experiment, in a word.
        command, commit: what started the run; empty where nobody wrote it down.
        spent: wall seconds of a run that did not finish, until its last epoch.
    """

    run_id: str
    name: str
    role: str
    state: str
    method: str
    settings: str
    seed: int
    group: str
    started: int
    experiment: str
    parent: str | None = None
    margin: float | None = None
    reason: str = ""
    folder: str = ""
    metrics: FinalMetrics | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    data: str = ""
    model: str = ""
    command: str = ""
    commit: str = ""
    spent: float = 0.0

    @property
    def wall_seconds(self) -> float:
        """What the run took, or until its last epoch."""
        if self.metrics is None:
            return self.spent
        costs = self.metrics.costs
        return costs.train_seconds if costs.wall_seconds is None else costs.wall_seconds

    @property
    def finished(self) -> bool:
        return self.metrics is not None

    @property
    def final(self) -> FinalMetrics:
        """The metrics of a run that is known to have finished."""
        assert self.metrics is not None
        return self.metrics


def record_of(entry: Entry) -> Record:
    """A run of ours, read back."""
    tags = entry.tags
    state, seed = tags.get(STATE, "running"), int(tags.get(SEED, 0))
    texts = {key: tags[OURS + key] for key in TEXTS if OURS + key in tags}
    over = {**entry.metrics, **texts, "seed": seed} if state == "finished" else None
    return Record(
        run_id=entry.run_id,
        name=entry.name,
        role=tags.get(ROLE, "run"),
        state=state,
        method=tags.get(METHOD, ""),
        settings=tags.get(SETTINGS, ""),
        seed=seed,
        group=tags.get(GROUP, ""),
        started=entry.started,
        experiment=entry.experiment,
        parent=entry.parent,
        margin=float(tags[MARGIN]) if MARGIN in tags else None,
        reason=tags.get(REASON, ""),
        folder=tags.get(FOLDER, ""),
        metrics=None if over is None else FinalMetrics.from_dict(over),
        params=json.loads(tags.get(PARAMS, "{}")),
        plan=Plan.from_dict(json.loads(tags[PLAN])) if PLAN in tags else None,
        data=tags.get(DATA, ""),
        model=tags.get(MODEL, ""),
        command=tags.get(COMMAND, ""),
        commit=tags.get(COMMIT, ""),
        spent=float(tags.get(SPENT, 0.0)),
    )


COMPARED = (
    *("progress", "epochs", "passes_saved", "train_seconds", "wall_seconds", "train_flops"),
    *("reference_steps", "reference_batch", "reference_spread"),
    *("core_fraction", "switches_per_second", "other_processes", "workers_min", "workers_max"),
    *("test_samples", "val_samples"),
)
"""Final metrics that a comparison reads beside the one that ranks runs: half of those that a run has."""


def records(
    tracker: Tracker,
    experiment: str | None = None,
    *,
    parent: str | None = None,
    wanted: Collection[str] | None = None,
) -> list[Record]:
    """Our runs (not the sweeps that hold them), oldest first; of all experiments where none is named.

    Args:
        wanted: final metrics that are enough, as `Tracker.runs` takes them.

    Raises:
        UserError: if there is no such experiment; it names those there are.
    """
    if experiment is not None and experiment not in (known := tracker.experiments()):
        raise UserError(
            f"experiment {experiment!r}: no such experiment at {tracker.uri}; expected one of: "
            f"{', '.join(sorted(known)) or 'none yet'}"
        )
    found = tracker.runs(experiment, tag=GROUP, parent=parent, wanted=wanted)
    return [record_of(entry) for entry in found]


def short_ids(run_ids: Iterable[str]) -> dict[str, str]:
    """The beginning of each id that no other one has, of `SHORTEST_ID` characters or more."""
    ids = sorted(set(run_ids))
    needed = [_needed(one, other) for one, other in pairwise(["", *ids, ""])]
    return {run_id: run_id[: max(sides)] for run_id, sides in zip(ids, pairwise(needed), strict=True)}


def _needed(one: str, other: str) -> int:
    """How many characters tell two ids apart, of `SHORTEST_ID` or more."""
    length = SHORTEST_ID
    while one[:length] == other[:length] and length <= len(one):
        length += 1
    return length
