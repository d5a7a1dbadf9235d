"""What is faster, by how much, at what accuracy, and how sure that is: rows from the runs of a tracker.

Runs that differ in their seed alone are one row. A row is compared with the baseline of its own sweep, or,
for single runs, with any baseline of the same data, model, budget and hardware. A trial of a search is one
chosen seed on the validation split: it has no verdict, and where its settings were confirmed over the seeds it
is no evidence. The winners of a sweep are judged together, by the plan that was made before they ran.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from statistics import fmean, stdev
from typing import Any

from raytrain_speedup.engine.compare import (
    METRIC_ON,
    NAMES,
    Comparison,
    NotComparable,
    compare,
    settle_runs,
    split_of,
)
from raytrain_speedup.engine.cost.speedup import by_seed
from raytrain_speedup.engine.final_metrics import FinalMetrics, Runs
from raytrain_speedup.engine.statistics.verdict import Look, Plan
from raytrain_speedup.metric import ACCURACY, Direction, Metric, SplitName
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
    metric: str = ACCURACY.name
    direction: Direction = ACCURACY.direction
    split: SplitName = "test"
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
    def ranking(self) -> Metric:
        """`metric` with its `direction`."""
        return Metric(self.metric, self.direction)

    @property
    def difference(self) -> float | None:
        return None if self.comparison is None else self.comparison.difference

    @property
    def gain(self) -> float | None:
        """The difference, above 0 where the row is better than the baseline."""
        return None if self.comparison is None else self.comparison.gain

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
        """Plain data for `--json`, schedules and trackers: every key in every row, of what is not known None."""
        own = (field.name for field in fields(self) if field.name not in ("comparison", "plan"))
        return {
            **{name: getattr(self, name) for name in own},
            **(dict.fromkeys(NAMES) if self.comparison is None else self.comparison.to_dict()),
            "verdict": self.verdict,
            "speedup": self.speedup,
            "plan": self.plan and self.plan.to_dict(),
            "looks": self.looks,
        }


def leaderboard(
    experiment: str | None = None, tracking_uri: str | None = None, *, parent: str | None = None
) -> list[Row]:
    """The rows of a tracker's experiment, or of all; of one sweep if `parent` is its run.

    Raises:
        UserError: if there is no such experiment.
    """
    tracker = open_tracker(tracking_uri)
    with _without_garbage_collection():
        return rows(store.records(tracker, experiment, parent=parent, wanted=store.COMPARED))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Rows hold no circles, and of ten thousand runs a quarter of the time went into looking for some."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    return _fastest(row for row in rows if row.role in SEARCHED)


def fastest_control(rows: Sequence[Row]) -> Row | None:
    """The fastest control that is lossless: none of a search's merit, but a schedule all the same."""
    return _fastest(row for row in rows if row.role not in (*SEARCHED, "baseline"))


def _fastest(rows: Iterable[Row]) -> Row | None:
    proven = [row for row in rows if row.verdict == "lossless"]
    return max(proven, key=lambda row: row.speedup or 0.0, default=None)


def safest(rows: Sequence[Row]) -> Row | None:
    """The setting of a search whose loss is bounded best, proven or not: confirmed ones before the others."""
    searched = [(row, row.comparison) for row in rows if row.role in SEARCHED and row.comparison is not None]
    confirmed = [(found.least_gain, row) for row, found in searched if found.least_gain is not None]
    ranked = confirmed or [(found.gain, row) for row, found in searched]
    return max(ranked, key=lambda pair: pair[0], default=(0.0, None))[1]


def _sweep(record: Record) -> tuple[Any, ...]:
    """What has to be equal for two runs to be compared at all: the sweep, and the question within it."""
    return record.experiment, record.final.baseline_key, record.final.hardware, record.parent


class _Baselines:
    """The baselines by what they are compared with, looked up for each of thousands of rows.

    A sweep has its own baseline, whatever it varies; single runs are compared if they are trained alike.
    """

    def __init__(self, finished: Sequence[Record]) -> None:
        found: dict[tuple[Any, ...], list[FinalMetrics]] = defaultdict(list)
        for record in finished:
            if record.role == "baseline":
                found[self._key(record)].append(record.final)
        self._runs = {key: Runs(runs) for key, runs in found.items()}

    def of(self, run: Record) -> Runs:
        return self._runs.get(self._key(run), Runs())

    @staticmethod
    def _key(run: Record) -> tuple[Any, ...]:
        return *_sweep(run), run.final.train_key if run.parent is None else None


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
        runs = {group[0].run_id: [run.final for run in group] for group in winners}
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
    runs = Runs(run.final for run in group)
    split = split_of(runs)
    accuracies = list(runs.once(by_seed, METRIC_ON[split]).values())
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
        metric=first.final.metric.name,
        direction=first.final.metric.direction,
        split=split,
        accuracy=fmean(accuracies) if accuracies else None,
        accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
        margin=margin,
        comparison=found,
        plan=_longest_plan(group),
        passes_saved=fmean([run.passes_saved for run in runs]),
        train_seconds=fmean([run.costs.train_seconds for run in runs]),
        hardware=first.final.hardware,
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
    lost = max(0.0, -(row.gain or 0.0) - row.margin)
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
