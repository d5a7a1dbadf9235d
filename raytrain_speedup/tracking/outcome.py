"""A sweep's answer, written down with its own run: whoever opens that run in the tracker needs no other page.

Metrics and tags for tables and searches; a note with the verdict, the plot and the leaderboard for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.leaderboard import SEARCHED, Row, best, safest
from raytrain_speedup.tracking.store import short_ids
from raytrain_speedup.tracking.table import markdown_table
from raytrain_speedup.tracking.tracker import Tracker

NUMBERS = ("speedup", "difference", "flops_ratio", "passes_saved", "accuracy", "baseline_accuracy", "margin")
"""Of a row, that are metrics of the sweep's own run."""

SHOWN = 20
"""Rows of the note: a tag of MLflow holds 8,000 characters."""


def log_outcome(tracker: Tracker, run_id: str, rows: Sequence[Row], plot: Path) -> None:
    """Write down what a sweep found: the setting that is proven, or else the one whose loss is bounded best.

    Args:
        run_id: the sweep's own run.
        rows: its leaderboard.
        plot: of the leaderboard, a PNG.
    """
    tracker.log_file(run_id, plot)
    answer = best(rows) or safest(rows)
    if answer is not None:
        if metrics := outcome_metrics(answer):
            tracker.log_metrics(run_id, metrics)
        tags = {
            store.VERDICT: answer.verdict or "not yet known",
            store.METHOD: answer.method,
            store.SETTINGS: f"{answer.label} {answer.settings}".strip(),
            store.DATA: answer.data,
            store.MODEL: answer.model,
        }
        tracker.set_tags(run_id, tags)
    for row in rows:
        if row.verdict is not None:
            for one in row.run_ids:
                tracker.set_tags(one, {store.VERDICT: row.verdict})
    tracker.describe(run_id, outcome_note(rows, tracker.file_link(run_id, plot.name)))


def outcome_metrics(row: Row) -> dict[str, float]:
    """The speedup and the difference with their bounds, and what they are of; what is not known is left out."""
    found = row.to_dict()
    values = {name: found[name] for name in NUMBERS} | {"seeds": float(len(row.seeds))}
    for name, interval in (("speedup", row.speedup_interval), ("difference", row.interval)):
        if interval is not None:
            values[f"{name}_low"], values[f"{name}_high"] = interval
    return {name: value for name, value in values.items() if value is not None}


def outcome_note(rows: Sequence[Row], plot: str) -> str:
    """The answer as Markdown.

    Args:
        plot: how the page refers to the plot.
    """
    ids = short_ids(run_id for row in rows for run_id in row.run_ids)
    shown = [row for row in rows if row.state == "finished"][:SHOWN]
    lines = [f"**{verdict_sentence(rows)}**", ""]
    if (control := control_sentence(rows)) is not None:
        lines += [control, ""]
    lines += [f"![speedup against accuracy]({plot})", ""]
    lines += [markdown_table(shown, ids), ""]
    if left := len(rows) - len(shown):
        lines += [f"and {left} more runs, stopped, failed or further down (`speedup leaderboard`)", ""]
    if (chosen := best(rows)) is not None:
        lines += [f"`speedup export {ids[chosen.run_id]} -o schedule.yaml` writes the proven setting."]
    return "\n".join(lines)


def verdict_sentence(rows: Sequence[Row]) -> str:
    """The answer of a sweep in one sentence."""
    row = best(rows)
    if row is None:
        least = safest(rows)
        known = "" if least is None else f"; the safest is {least.label} {least.settings}".rstrip()
        return f"No setting is proven lossless{known}."
    times = "at a time that is not known" if row.speedup is None else f"{row.speedup:.2f} times as fast"
    difference = "" if row.comparison is None else row.comparison.spoken()
    return (
        f"{row.label} {row.settings} trains {times}, {difference} over "
        f"{len(row.seeds)} seeds: {row.verdict} (margin {row.margin:g})."
    )


def control_sentence(rows: Sequence[Row]) -> str | None:
    """Which control does what the proven setting does, at no lower speed; None where none does."""
    row = best(rows)
    if row is None or row.speedup is None:
        return None
    least = row.speedup if row.speedup_interval is None else row.speedup_interval[0]
    equal = [
        other
        for other in rows
        if other.role not in (*SEARCHED, "baseline", "run")
        and other.verdict == "lossless"
        and other.speedup is not None
        and other.speedup >= least
    ]
    if not equal:
        return None
    control = max(equal, key=lambda other: other.speedup or 0.0)
    what = f"{control.label} {control.settings}".rstrip()
    return (
        f"So does a control: {what} is lossless at {control.speedup:.2f} x. At this budget the speedup is no "
        "merit of the method."
    )


def row_in_words(row: Row) -> str:
    """A row on one line: the setting, the verdict, what it loses and saves, and over how many seeds."""
    known = row.verdict or ("one seed of the search, validation data" if row.role == "trial" else row.note)
    seeds = "" if row.role == "trial" else f", {len(row.seeds)} seed{'s' if len(row.seeds) != 1 else ''}"
    loss = "" if row.comparison is None else f", {row.comparison.spoken()}"
    speed = "" if row.speedup is None else f" at {row.speedup:.2f} x"
    if row.speedup_interval is not None:
        speed += f" [{row.speedup_interval[0]:.2f}, {row.speedup_interval[1]:.2f}]"
    return f"{row.label} {row.settings}".rstrip() + f": {known}{loss}{speed}{seeds}"
