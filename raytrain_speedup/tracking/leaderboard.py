"""What is faster, by how much, at what accuracy, and how sure that is: rows from the runs of a tracker.

Runs that differ in their seed alone are one row. A row is compared with the baseline of its own sweep, or,
for single runs, with any baseline of the same data, model, budget and hardware. A trial of a search is one
chosen seed on the validation split: it has no verdict, and where its settings were confirmed over the seeds it
is no evidence. The winners of a sweep are judged together, by the plan that was made before they ran.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean, stdev
from typing import Any

from raytrain_speedup.engine.compare import (
    DEFAULT_METRIC,
    Comparison,
    NotComparable,
    compare,
    metric_of,
    settle_runs,
    split_of,
)
from raytrain_speedup.engine.cost.speedup import Run, by_seed
from raytrain_speedup.engine.statistics.verdict import Look, Plan
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.store import Record

SEARCHED = ("trial", "winner")
DEFAULT_MARGIN = 0.5
VERDICTS = ("lossless", "not yet known", "lossy")


@dataclass(frozen=True)
class Row:
    """One setting. Accuracies (by the task's `metric`) and differences are in points; what is not known is None.

    Attributes:
        role: `baseline`, a control's name, `trial`, `winner` or `run`.
        run_id: of the first seed; `run_ids` are all that make this row.
        split: the data that accuracy is of: the test split is not read by a search.
        comparison: with the baseline, as `engine.compare` made it; None for the baseline itself.
        plan: of the confirmation, where there was one.
        state: finished, or how the only run of the row ended.
        note: why there is no comparison.
        command, commit: what started the first seed.
    """

    experiment: str
    sweep: str | None
    role: str
    method: str
    settings: str
    state: str
    run_id: str
    run_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    metric: str = DEFAULT_METRIC
    split: str = "test"
    accuracy: float | None = None
    accuracy_std: float | None = None
    margin: float = DEFAULT_MARGIN
    comparison: Comparison | None = None
    plan: Plan | None = None
    passes_saved: float | None = None
    train_seconds: float | None = None
    hardware: str = ""
    note: str = ""
    data: str = ""
    model: str = ""
    command: str = ""
    commit: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.comparison is None else self.comparison.difference

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.comparison is None else self.comparison.interval

    @property
    def verdict(self) -> str | None:
        """None for a trial: it was chosen, and ran once."""
        return None if self.comparison is None or self.role == "trial" else self.comparison.verdict

    @property
    def speedup(self) -> float | None:
        """By the clock that is believed; None where none is."""
        if self.role == "baseline" and self.state == "finished":
            return 1.0
        return None if self.comparison is None else self.comparison.speedup.ratio

    @property
    def speedup_interval(self) -> tuple[float, float] | None:
        return None if self.comparison is None else self.comparison.speedup.interval

    @property
    def flops_ratio(self) -> float | None:
        return None if self.comparison is None else self.comparison.speedup.flops

    @property
    def looks(self) -> int | None:
        """How often the plan has looked at the data by now."""
        if self.plan is None or self.comparison is None:
            return None
        return sum(self.comparison.look.seeds >= planned for planned in self.plan.looks)

    @property
    def label(self) -> str:
        """The method, or the control's name."""
        return self.method if self.role in (*SEARCHED, "run") else self.role

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`: every key in every row."""
        own = (field.name for field in fields(self) if field.name not in ("comparison", "plan"))
        plain = {name: getattr(self, name) for name in own}
        found = self.comparison
        look, cost = (None, None) if found is None else (found.look, found.speedup)
        return plain | {
            "baseline_accuracy": found and found.baseline_accuracy,
            "difference": self.difference,
            "interval": self.interval,
            "verdict": self.verdict,
            "status": look and look.status,
            "seeds_missing": look and look.seeds_missing,
            "correlation": look and look.correlation,
            "plan": self.plan and self.plan.to_dict(),
            "looks": self.looks,
            "speedup": self.speedup,
            "speedup_interval": self.speedup_interval,
            "speedup_clock": cost and cost.clock,
            "wall_speedup": cost and cost.wall,
            "flops_ratio": self.flops_ratio,
            "disturbed": cost and cost.disturbed,
            "doubt": cost and cost.doubt,
        }


def leaderboard(
    experiment: str | None = None, tracking_uri: str | None = None, *, parent: str | None = None
) -> list[Row]:
    """The rows of a tracker's experiment, or of all; of one sweep if `parent` is its run.

    Raises:
        UserError: if there is no such experiment.
    """
    tracker = open_tracker(tracking_uri)
    return rows(store.records(tracker, experiment, parent=parent, wanted=store.COMPARED))


def rows(records: Sequence[Record]) -> list[Row]:
    """Group the runs, compare them with their baselines, and sort: baseline first, then the best."""
    finished = [record for record in records if record.finished]
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in finished:
        groups[(*_sweep(record), record.group)].append(record)
    evidence = [_evidence(group) for group in groups.values()]
    baselines = _Baselines(finished)
    looks = _looks_of_winners(evidence, baselines)
    found = [_row(group, baselines, looks.get(group[0].run_id)) for group in evidence]
    found += [_unfinished(record) for record in records if not record.finished]
    return sorted(found, key=_rank)


def best(rows: Sequence[Row]) -> Row | None:
    """The fastest proven setting of a search; None where none is lossless."""
    proven = [row for row in rows if row.role in SEARCHED and row.verdict == "lossless"]
    return max(proven, key=lambda row: row.speedup or 0.0, default=None)


def safest(rows: Sequence[Row]) -> Row | None:
    """The setting of a search whose loss is bounded best, proven or not: confirmed ones before the others."""
    searched = [row for row in rows if row.role in SEARCHED and row.difference is not None]
    confirmed = [row for row in searched if row.interval is not None]

    def bound(row: Row) -> float:
        return row.interval[0] if row.interval is not None else row.difference or 0.0

    return max(confirmed or searched, key=bound, default=None)


def _sweep(record: Record) -> tuple[Any, ...]:
    """What has to be equal for two runs to be compared at all: the sweep, and the question within it."""
    metrics = record.metrics
    return record.experiment, metrics.get("baseline_key"), metrics.get("hardware"), record.parent


class _Baselines:
    """The baselines by what they are compared with, looked up for each of thousands of rows.

    A sweep has its own baseline, whatever it varies; single runs are compared if they are trained alike.
    """

    def __init__(self, finished: Sequence[Record]) -> None:
        self._runs: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
        for record in finished:
            if record.role == "baseline":
                self._runs[self._key(record)].append(record.run())

    def of(self, run: Record) -> list[Run]:
        return self._runs.get(self._key(run), [])

    @staticmethod
    def _key(run: Record) -> tuple[Any, ...]:
        return *_sweep(run), run.metrics.get("train_key") if run.parent is None else None


def _evidence(group: Sequence[Record]) -> list[Record]:
    return [record for record in group if record.role != "trial"] or list(group)


def _looks_of_winners(groups: Sequence[list[Record]], baselines: _Baselines) -> dict[str, Look]:
    """The verdicts of the confirmed settings by their first run. Those of one sweep share its error, so they are
    settled together, and those that do not compare are left to say why."""
    looks: dict[str, Look] = {}
    sweeps: dict[tuple[Any, ...], list[list[Record]]] = defaultdict(list)
    for group in groups:
        if group[0].plan is not None:
            sweeps[_sweep(group[0])].append(group)
    for winners in sweeps.values():
        plan = _longest_plan([run for group in winners for run in group])
        runs = {group[0].run_id: [run.run() for run in group] for group in winners}
        if plan is not None:
            looks |= settle_runs(plan, runs, baselines.of(winners[0][0]))
    return looks


def _longest_plan(runs: Sequence[Record]) -> Plan | None:
    """The plan of a confirmation, which may have been extended since the first runs."""
    return max(
        (run.plan for run in runs if run.plan is not None), key=lambda plan: plan.max_seeds, default=None
    )


def _row(group: Sequence[Record], baselines: _Baselines, look: Look | None) -> Row:
    group = sorted(group, key=lambda record: record.seed)
    first = group[0]
    runs = [run.run() for run in group]
    metric = metric_of(first.metrics)
    split, key = split_of(runs, metric)
    accuracies = list(by_seed([run for run in runs if key in run], key).values())
    margin = DEFAULT_MARGIN if first.margin is None else first.margin
    found, note = None, ""
    if first.role != "baseline":
        try:
            found = compare(runs, baselines.of(first), margin=margin, look=look, declared=first.params.keys())
        except NotComparable as reason:
            note = str(reason)
    return Row(
        experiment=first.experiment,
        sweep=first.parent,
        role=first.role,
        method=first.method,
        settings=first.settings,
        state="finished",
        run_id=first.run_id,
        run_ids=tuple(run.run_id for run in group),
        seeds=tuple(sorted({run.seed for run in group})),
        metric=metric,
        split=split,
        accuracy=fmean(accuracies) if accuracies else None,
        accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
        margin=margin,
        comparison=found,
        plan=_longest_plan(group),
        passes_saved=fmean(run.metrics["passes_saved"] for run in group),
        train_seconds=fmean(run.metrics["train_seconds"] for run in group),
        hardware=str(first.metrics.get("hardware", "")),
        data=first.data,
        model=first.model,
        command=first.command,
        commit=first.commit,
        note=note,
    )


def _unfinished(record: Record) -> Row:
    return Row(
        experiment=record.experiment,
        sweep=record.parent,
        role=record.role,
        method=record.method,
        settings=record.settings,
        state=record.state,
        run_id=record.run_id,
        run_ids=(record.run_id,),
        seeds=(record.seed,),
        note=record.reason or record.state,
        data=record.data,
        model=record.model,
        command=record.command,
        commit=record.commit,
    )


def _rank(row: Row) -> tuple[Any, ...]:
    order = VERDICTS.index(row.verdict) if row.verdict is not None else len(VERDICTS)
    lost = max(0.0, -(row.difference or 0.0) - row.margin)
    return (
        row.experiment,
        row.sweep or "",
        row.state != "finished",
        row.role != "baseline",
        order,
        row.interval is None,
        lost,
        -(row.speedup or 0.0),
    )
