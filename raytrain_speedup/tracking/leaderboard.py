"""What is faster, by how much, at what accuracy, and how sure that is: rows from the runs in MLflow.

Runs that differ in their seed alone are one row. A row is compared with the baseline of its own sweep, or,
for single runs, with any baseline of the same data, model, budget and hardware. A trial of a search is one
chosen seed on the validation split: it has no verdict, and where its settings were confirmed over the seeds it
is no evidence. The winners of a sweep are judged together, by the plan that was made before they ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytrain_speedup.engine.compare import (
    DEFAULT_METRIC,
    Comparison,
    NotComparable,
    compare,
    grain_of,
    metric_of,
    split_of,
    spoken,
)
from raytrain_speedup.engine.speedup import by_seed
from raytrain_speedup.engine.verdict import Look, Plan, settle
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.store import Record

SEARCHED = ("trial", "winner")
DEFAULT_MARGIN = 0.5
WIDE = 124
"""Columns of a terminal that takes the whole table."""

STYLES = {"lossless": "green", "lossy": "red", "not yet known": "yellow"}
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
        plain = {key: value for key, value in asdict(self).items() if key not in ("comparison", "plan")}
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
    """The rows of an MLflow experiment, or of all; of one sweep if `parent` is its run.

    Raises:
        UserError: if there is no such experiment.
    """
    return rows(store.records(store.connect(tracking_uri), experiment, parent=parent))


def rows(records: Sequence[Record]) -> list[Row]:
    """Group the runs, compare them with their baselines, and sort: baseline first, then the best."""
    finished = [record for record in records if record.finished]
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in finished:
        groups.setdefault((*_scope(record), record.parent, record.group), []).append(record)
    groups = {key: _evidence(group) for key, group in groups.items()}
    looks = _looks_of_winners(list(groups.values()), finished)
    found = [_row(group, finished, looks.get(group[0].run_id)) for group in groups.values()]
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


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the leaderboard, and below it what a column has no room for."""
    for experiment in dict.fromkeys(row.experiment for row in rows):
        shown = [row for row in rows if row.experiment == experiment]
        console.print(_table(experiment, shown, wide=console.width >= WIDE))
        for line in _remarks(shown):
            console.print(Text(line, style="dim"), soft_wrap=True)
    if not rows:
        console.print("no runs yet; `speedup sweep search_spaces/quickstart.yaml` makes some")


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Why runs ended, what disturbed them, and what is grey."""
    for row in rows:
        if row.state != "finished" and row.note != row.state:
            yield f"{row.run_id[:8]} {row.state}: {row.note}"
        speedup = None if row.comparison is None or row.role == "trial" else row.comparison.speedup
        if speedup is not None and (speedup.disturbed or speedup.doubt):
            disturbed = f"disturbed ({speedup.disturbed})" if speedup.disturbed else ""
            yield f"{row.run_id[:8]} ~ " + " ".join(filter(None, [disturbed, speedup.doubt]))
        if speedup is not None and speedup.clock != "reference steps":
            yield f"{row.run_id[:8]} speedup by {speedup.clock}: see docs/measuring.md"
    if any(row.role == "trial" and row.state == "finished" for row in rows):
        yield "grey: one seed of the search, on validation data; chosen, and no evidence"


def metric_names(rows: Sequence[Row]) -> str:
    """What is called accuracy in these rows, for a heading."""
    known = [row.metric for row in rows if row.accuracy is not None]
    return " or ".join(spoken(name) for name in dict.fromkeys(known)) or DEFAULT_METRIC


def _scope(record: Record) -> tuple[Any, ...]:
    """What has to be equal for two runs to be compared at all."""
    return record.experiment, record.metrics.get("baseline_key"), record.metrics.get("hardware")


def _is_baseline_of(baseline: Record, run: Record) -> bool:
    """A sweep has its own baseline, whatever it varies; single runs are compared if they are trained alike."""
    if _scope(baseline) != _scope(run) or baseline.parent != run.parent:
        return False
    return run.parent is not None or baseline.metrics.get("train_key") == run.metrics.get("train_key")


def _evidence(group: Sequence[Record]) -> list[Record]:
    return [record for record in group if record.role != "trial"] or list(group)


def _baselines_of(run: Record, finished: Sequence[Record]) -> list[Record]:
    return [other for other in finished if other.role == "baseline" and _is_baseline_of(other, run)]


def _looks_of_winners(groups: Sequence[list[Record]], finished: Sequence[Record]) -> dict[str, Look]:
    """The verdicts of the confirmed settings by their first run. Those of one sweep share its error, so they are
    settled together, and those that do not compare are left to say why."""
    looks: dict[str, Look] = {}
    confirmed = [group for group in groups if group[0].plan is not None]
    for scope in dict.fromkeys((*_scope(group[0]), group[0].parent) for group in confirmed):
        winners = {g[0].run_id: g for g in confirmed if (*_scope(g[0]), g[0].parent) == scope}
        first = next(iter(winners.values()))[0]
        plan = _longest_plan([run for group in winners.values() for run in group])
        baselines = _baselines_of(first, finished)
        metric = metric_of(first.metrics)
        judged = {
            run_id: by_seed([run.run() for run in group], metric)
            for run_id, group in winners.items()
            if all(metric in run.metrics for run in (*group, *baselines))
        }
        if baselines and judged and plan is not None:
            level = by_seed([run.run() for run in baselines], metric)
            grain = grain_of([], [run.run() for run in baselines], "test")
            looks |= settle(plan, judged, level, grain=grain)
    return looks


def _longest_plan(runs: Sequence[Record]) -> Plan | None:
    """The plan of a confirmation, which may have been extended since the first runs."""
    return max(
        (run.plan for run in runs if run.plan is not None), key=lambda plan: plan.max_seeds, default=None
    )


def _row(group: Sequence[Record], finished: Sequence[Record], look: Look | None) -> Row:
    group = sorted(group, key=lambda record: record.seed)
    first = group[0]
    runs = [run.run() for run in group]
    metric = metric_of(first.metrics)
    split, key = split_of(runs, metric)
    accuracies = list(by_seed([run for run in runs if key in run], key).values())
    row = Row(
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
        margin=DEFAULT_MARGIN if first.margin is None else first.margin,
        plan=_longest_plan(group),
        passes_saved=fmean(run.metrics["passes_saved"] for run in group),
        train_seconds=fmean(run.metrics["train_seconds"] for run in group),
        hardware=str(first.metrics.get("hardware", "")),
    )
    if first.role == "baseline":
        return row
    baselines = [run.run() for run in _baselines_of(first, finished)]
    try:
        found = compare(runs, baselines, margin=row.margin, look=look, declared=first.params.keys())
    except NotComparable as reason:
        return replace(row, note=str(reason))
    return replace(row, comparison=found)


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


def _table(experiment: str, rows: Sequence[Row], *, wide: bool) -> Table:
    metric = metric_names(rows)
    table = Table(
        title=f"{experiment}: speedup against {metric}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1 if wide else 0, 0, 0),
    )
    table.add_column("method", overflow="fold", min_width=18 if wide else 16)
    for column in (f"{metric} %", "difference", "speedup", "saved", *(("seeds", "FLOPs") if wide else ())):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", max_width=None if wide else 11)
    table.add_column("run", no_wrap=True, width=8)
    for row in rows:
        grey = row.state != "finished" or row.role == "trial"
        table.add_row(*_cells(row, wide=wide), style="dim" if grey else None)
    return table


def _cells(row: Row, *, wide: bool) -> list[str | Text]:
    verdict = row.verdict or (row.note if row.state == "finished" else row.state)
    if row.state == "finished" and row.role in ("baseline", "trial"):
        verdict = row.note or row.role
    more = [str(len(row.seeds)), _number(row.flops_ratio, "1/{:.2f}")] if wide else []
    return [
        f"{row.label} {row.settings}".strip(),
        _number(row.accuracy, "{:.2f}") + _number(row.accuracy_std, " ± {:.2f}" if wide else "±{:.2f}"),
        _with_interval(_number(row.difference, "{:+.2f}"), row.interval, "{:+.2f}", wide=wide),
        _with_interval(_speedup(row), row.speedup_interval, "{:.2f}", wide=wide),
        _number(row.passes_saved, "{:.0%}"),
        *more,
        Text(verdict, style=STYLES.get(verdict, "")),
        row.run_id[:8],
    ]


def _speedup(row: Row) -> str:
    """With a tilde where something disturbed it or disagrees; of hopeless times nothing."""
    speedup = None if row.comparison is None else row.comparison.speedup
    mark = " ~" if speedup is not None and (speedup.disturbed or speedup.doubt) else ""
    if speedup is not None and speedup.ratio is None:
        return "no time" + mark
    return _number(row.speedup, "{:.2f} x") + mark


def _with_interval(text: str, interval: tuple[float, float] | None, form: str, *, wide: bool) -> str:
    """The interval beside a value, or below it where there is little room."""
    if interval is None:
        return text
    low, high = (form.format(bound) for bound in interval)
    return f"{text} [{low}, {high}]" if wide else f"{text}\n[{low},{high}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
