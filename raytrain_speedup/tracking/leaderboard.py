"""What is faster, by how much, at what accuracy, and how sure that is: rows from the runs in MLflow.

Runs that differ in their seed alone are one row. A row is compared with the baseline of its own sweep, or,
for single runs, with any baseline of the same data, model, budget and hardware. Where a winner was confirmed
over the seeds, the trial that found it is no evidence: it was chosen for its luck as well.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    metric_of,
    spoken,
)
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.store import Record

SEARCHED = ("trial", "winner")
DEFAULT_MARGIN = 0.5
WIDE = 110
"""Columns of a terminal that takes the whole table."""

STYLES = {"lossless": "green", "lossy": "red", "not yet known": "yellow"}
VERDICTS = ("lossless", "not yet known", "lossy")


@dataclass(frozen=True)
class Row:
    """One setting. Accuracies (of the test split, by the task's `metric`) and differences are in points; what is
    not known is None.

    Attributes:
        role: `baseline`, a control's name, `trial`, `winner` or `run`.
        run_id: of the first seed; `run_ids` are all that make this row.
        difference, interval, verdict, speedup, flops_ratio: as in `engine.compare.Comparison`.
        state: finished, or how the only run of the row ended.
        note: why there is no speedup.
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
    accuracy: float | None = None
    accuracy_std: float | None = None
    baseline_accuracy: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    margin: float = DEFAULT_MARGIN
    verdict: str | None = None
    speedup: float | None = None
    passes_saved: float | None = None
    flops_ratio: float | None = None
    train_seconds: float | None = None
    hardware: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The method, or the control's name."""
        return self.method if self.role in (*SEARCHED, "run") else self.role


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
    found = [_row(_evidence(group), finished) for group in groups.values()]
    found += [_unfinished(record) for record in records if not record.finished]
    return sorted(found, key=_rank)


def best(rows: Sequence[Row]) -> Row | None:
    """The fastest lossless setting of a search; where none is proven, the one that seems to lose least."""
    searched = [row for row in rows if row.role in SEARCHED and row.speedup is not None]
    proven = [row for row in searched if row.verdict == "lossless"]
    if proven:
        return max(proven, key=lambda row: row.speedup or 0.0)
    confirmed = [row for row in searched if row.interval is not None] or searched
    return max(confirmed, key=lambda row: row.difference or 0.0, default=None)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the leaderboard."""
    for experiment in dict.fromkeys(row.experiment for row in rows):
        shown = [row for row in rows if row.experiment == experiment]
        console.print(_table(experiment, shown, wide=console.width >= WIDE))
        for row in shown:
            if row.state != "finished" and row.note != row.state:  # a reason is too long for a column
                console.print(Text(f"{row.run_id[:8]} {row.state}: {row.note}", style="dim"), soft_wrap=True)
    if not rows:
        console.print("no runs yet; `speedup sweep search_spaces/quickstart.yaml` makes some")


def metrics(rows: Sequence[Row]) -> str:
    """What is called accuracy in these rows, for a heading."""
    known = [row.metric for row in rows if row.accuracy is not None]
    return " or ".join(spoken(name) for name in dict.fromkeys(known)) or DEFAULT_METRIC


def _scope(record: Record) -> tuple[Any, ...]:
    """What has to be equal for two runs to be compared at all."""
    return record.experiment, record.figures.get("baseline_key"), record.figures.get("hardware")


def _is_baseline_of(baseline: Record, run: Record) -> bool:
    """A sweep has its own baseline, whatever it varies; single runs are compared if they are trained alike."""
    if _scope(baseline) != _scope(run) or baseline.parent != run.parent:
        return False
    return run.parent is not None or baseline.figures.get("train_key") == run.figures.get("train_key")


def _evidence(group: Sequence[Record]) -> list[Record]:
    return [record for record in group if record.role != "trial"] or list(group)


def _row(group: Sequence[Record], finished: Sequence[Record]) -> Row:
    group = sorted(group, key=lambda record: record.seed)
    first = group[0]
    baselines = [run for run in finished if run.role == "baseline" and _is_baseline_of(run, first)]
    metric = metric_of(first.figures)
    accuracies = [run.figures[metric] for run in group]
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
        accuracy=fmean(accuracies),
        accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
        margin=DEFAULT_MARGIN if first.margin is None else first.margin,
        passes_saved=fmean(run.figures["passes_saved"] for run in group),
        train_seconds=fmean(run.figures["train_seconds"] for run in group),
        hardware=str(first.figures.get("hardware", "")),
    )
    if first.role == "baseline":
        return replace(row, speedup=1.0, flops_ratio=1.0)
    try:
        return _compared(
            row,
            compare([run.run() for run in group], [run.run() for run in baselines], margin=row.margin),
        )
    except NotComparable as reason:
        return replace(row, note=str(reason))


def _compared(row: Row, found: Comparison) -> Row:
    return replace(
        row,
        baseline_accuracy=found.baseline_accuracy,
        difference=found.difference,
        interval=found.interval,
        verdict=found.verdict,
        speedup=found.speedup,
        flops_ratio=found.flops_ratio,
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
    )


def _rank(row: Row) -> tuple[Any, ...]:
    order = VERDICTS.index(row.verdict) if row.verdict in VERDICTS else len(VERDICTS)
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
    metric = metrics(rows)
    table = Table(
        title=f"{experiment}: speedup against {metric}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1 if wide else 0, 0, 0),
    )
    table.add_column("method", overflow="fold", min_width=18)
    for column in (f"{metric} %", "difference", "speedup", "saved", *(("seeds", "FLOPs") if wide else ())):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", max_width=None if wide else 11)
    table.add_column("run", no_wrap=True, min_width=8)
    for row in rows:
        table.add_row(*_cells(row, wide=wide), style="dim" if row.state != "finished" else None)
    return table


def _cells(row: Row, *, wide: bool) -> list[str | Text]:
    verdict = row.verdict or (row.note if row.state == "finished" else row.state)
    if row.role == "baseline" and row.state == "finished":
        verdict = "baseline"
    more = [str(len(row.seeds)), _number(row.flops_ratio, "1/{:.2f}")] if wide else []
    return [
        f"{row.label} {row.settings}".strip(),
        _number(row.accuracy, "{:.2f}") + _number(row.accuracy_std, " ± {:.2f}" if wide else "±{:.2f}"),
        _difference(row, "" if wide else "\n"),
        _number(row.speedup, "{:.2f} x"),
        _number(row.passes_saved, "{:.0%}"),
        *more,
        Text(verdict, style=STYLES.get(verdict, "")),
        row.run_id[:8],
    ]


def _difference(row: Row, before_interval: str) -> str:
    text = _number(row.difference, "{:+.2f}")
    if row.interval is not None:
        text += before_interval + f" [{row.interval[0]:+.2f}, {row.interval[1]:+.2f}]"
    return text


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
