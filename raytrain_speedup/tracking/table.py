"""The leaderboard for people: a table on the terminal, and below it what a column has no room for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytrain_speedup.metric import ACCURACY, Metric
from raytrain_speedup.tracking.leaderboard import Row
from raytrain_speedup.tracking.store import SHORTEST_ID, short_ids

WIDE = 124
"""Columns of a terminal that takes the whole table."""

MOST_TRIALS = 20
"""Of an experiment that are shown unasked."""

INTERVALS = ("interval", "speedup_interval")
STYLES = {"lossless": "green", "lossy": "red", "not yet known": "yellow"}


def show(rows: Sequence[Row], console: Console, *, every: bool = False) -> None:
    """Print the leaderboard, and below it what a column has no room for.

    Args:
        every: also where there are more than `MOST_TRIALS` trials in an experiment.
    """
    ids = short_ids(run_id for row in rows for run_id in row.run_ids)
    for experiment in dict.fromkeys(row.experiment for row in rows):
        ours = [row for row in rows if row.experiment == experiment]
        shown = ours if every else _without_most_trials(ours)
        console.print(_table(experiment, shown, ids, wide=console.width >= WIDE))
        for line in _remarks(shown, ids):
            console.print(Text(line, style="dim"), soft_wrap=True)
        if left := len(ours) - len(shown):
            console.print(Text(f"and {left:,} trials more: --all shows them", style="dim"), soft_wrap=True)
    if not rows:
        console.print("no runs yet; `speedup sweep search_spaces/quickstart.yaml` makes some")


def _without_most_trials(rows: Sequence[Row]) -> list[Row]:
    """Nobody reads a thousand grey lines; and the terminal takes longer to draw them than all else takes."""
    trials = [row for row in rows if row.role == "trial"]
    left = {id(row) for row in trials[MOST_TRIALS:]}
    return [row for row in rows if id(row) not in left]


def _remarks(rows: Sequence[Row], ids: Mapping[str, str]) -> Iterator[str]:
    """Why runs ended, what disturbed them, and what is grey."""
    for row in rows:
        if row.state != "finished" and row.note != row.state:
            yield f"{ids[row.run_id]} {row.state}: {row.note}"
        speedup = None if row.comparison is None or row.role == "trial" else row.comparison.speedup
        if speedup is not None and (speedup.disturbed or speedup.doubt):
            disturbed = f"disturbed ({speedup.disturbed})" if speedup.disturbed else ""
            yield f"{ids[row.run_id]} ~ " + " ".join(filter(None, [disturbed, speedup.doubt]))
        if speedup is not None and speedup.clock != "reference steps":
            yield f"{ids[row.run_id]} speedup by {speedup.clock}: see docs/measuring.md"
    if any(row.role == "trial" and row.state == "finished" for row in rows):
        yield "grey: one seed of the search, on validation data; chosen, and no evidence"


def metric_names(rows: Sequence[Row]) -> str:
    """What is called accuracy in these rows, for a heading."""
    return " or ".join(metric.spoken for metric in metrics_of(rows))


def metrics_of(rows: Sequence[Row]) -> list[Metric]:
    """What ranks these rows; mostly one."""
    known = [row.ranking for row in rows if row.accuracy is not None]
    return list(dict.fromkeys(known)) or [ACCURACY]


def markdown_table(rows: Sequence[Row], ids: Mapping[str, str]) -> str:
    """The table as Markdown."""
    heads = ["method", *columns(rows, wide=True), "verdict", "run"]
    lines = [heads, ["---"] * len(heads)]
    lines += [[*(str(cell) for cell in cells(row, wide=True)), ids[row.run_id]] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(rows: Sequence[Row]) -> str:
    """Every key of every row as CSV: intervals in two columns, lists with spaces, what is not known empty."""
    lines = [_flat(row.to_dict()) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if key in INTERVALS:
            flat[f"{key}_low"], flat[f"{key}_high"] = value or ("", "")
        elif isinstance(value, tuple | list):
            flat[key] = " ".join(map(str, value))
        else:
            flat[key] = json.dumps(value) if isinstance(value, dict) else value
    return flat


def columns(rows: Sequence[Row], *, wide: bool) -> list[str]:
    """The headings of the columns of numbers."""
    more = ["seeds", "FLOPs"] if wide else []
    units = {metric.unit for metric in metrics_of(rows)}
    heading = f"{metric_names(rows)} {units.pop() if len(units) == 1 else ''}".rstrip()
    return [heading, "difference", "speedup", "saved", *more]


def _table(experiment: str, rows: Sequence[Row], ids: Mapping[str, str], *, wide: bool) -> Table:
    table = Table(
        title=f"{experiment}: speedup against {metric_names(rows)}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1 if wide else 0, 0, 0),
    )
    table.add_column("method", overflow="fold", min_width=18 if wide else 16)
    for column in columns(rows, wide=wide):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", max_width=None if wide else 11)
    table.add_column(
        "run", no_wrap=True, width=max((len(ids[row.run_id]) for row in rows), default=SHORTEST_ID)
    )
    for row in rows:
        grey = row.state != "finished" or row.role == "trial"
        read = (*cells(row, wide=wide), ids[row.run_id])
        # As `Text`, since brackets are no markup here.
        plain = (Text(cell) if isinstance(cell, str) else cell for cell in read)
        table.add_row(*plain, style="dim" if grey else None)
    return table


def cells(row: Row, *, wide: bool) -> list[str | Text]:
    """A row as it is read: the setting, the numbers of `columns`, the verdict."""
    verdict = row.verdict or (row.note if row.state == "finished" else row.state)
    if row.state == "finished" and row.role in ("baseline", "trial"):
        verdict = row.note or row.role
    more = [str(len(row.seeds)), _number(row.flops_ratio, "1/{:.2f}")] if wide else []
    return [
        f"{row.label} {row.settings}".strip(),
        _accuracy(row, wide=wide),
        _with_interval(_difference(row), row.interval, partial(row.ranking.text, signed=True), wide=wide),
        _with_interval(_speedup(row), row.speedup_interval, "{:.2f}".format, wide=wide),
        _number(row.passes_saved, "{:.0%}"),
        *more,
        Text(verdict, style=STYLES.get(verdict, "")),
    ]


def _accuracy(row: Row, *, wide: bool) -> str:
    if row.accuracy is None:
        return ""
    spread = "" if row.accuracy_std is None else row.ranking.text(row.accuracy_std)
    return row.ranking.text(row.accuracy) + (f" ± {spread}" if wide else f"±{spread}") * bool(spread)


def _difference(row: Row) -> str:
    return "" if row.difference is None else row.ranking.text(row.difference, signed=True)


def _speedup(row: Row) -> str:
    """With a tilde where something disturbed it or disagrees; of hopeless times nothing."""
    speedup = None if row.comparison is None else row.comparison.speedup
    mark = " ~" if speedup is not None and (speedup.disturbed or speedup.doubt) else ""
    if speedup is not None and speedup.ratio is None:
        return "no time" + mark
    return _number(row.speedup, "{:.2f} x") + mark


def _with_interval(
    text: str, interval: tuple[float, float] | None, form: Callable[[float], str], *, wide: bool
) -> str:
    """The interval beside a value, or below it where there is little room."""
    if interval is None:
        return text
    low, high = map(form, interval)
    return f"{text} [{low}, {high}]" if wide else f"{text}\n[{low},{high}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
