"""The plot of a sweep: speedup against the difference in accuracy, with what cannot be beaten on both.

Differences rather than accuracies, because trials are judged on the validation split and what was confirmed on
the test split; each against the baseline on the same one. The front is of confirmed rows alone: a trial on it
would be there for its luck.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raytrain_speedup.metric import Metric
from raytrain_speedup.tracking.leaderboard import SEARCHED, Row
from raytrain_speedup.tracking.table import metrics_of

INK, QUIET, BLUE, GREEN, ORANGE = "#1f2937", "#9ca3af", "#2563eb", "#059669", "#d97706"
MARKERS = ("s", "^", "v", "P", "X", "D")


def plot_leaderboard(rows: Sequence[Row], path: str | Path, *, title: str) -> Path:
    """Draw a sweep's leaderboard.

    Args:
        rows: of `leaderboard`; those without a speedup (no baseline, stopped early) are left out.
        path: the PNG to write.
        title: what to call it.
    """
    baseline = next((row for row in rows if row.role == "baseline" and row.accuracy is not None), None)
    shown = [row for row in rows if row.speedup is not None and row.difference is not None]
    hardware = dict.fromkeys(row.hardware for row in (*shown, *([baseline] if baseline else [])))
    figure = Figure(figsize=(9, 5.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    metric = metrics_of(rows)[0]
    _frame(axes, title, " · ".join(hardware), metric)
    if baseline is not None:
        _baseline(axes, baseline)
    controls = [row for row in shown if row.role not in ("run", *SEARCHED)]
    winners = [row for row in shown if row.role == "winner"]
    _front(axes, [*controls, *winners])
    _trials(axes, [row for row in shown if row.role in ("trial", "run")])
    _controls(axes, controls)
    _winners(axes, winners)
    axes.margins(x=0.12, y=0.16)
    _cut(axes, shown, baseline)
    if metric.sign < 0:
        axes.invert_yaxis()  # what is better is above in any case
    if shown or baseline is not None:
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    path = Path(path)
    figure.savefig(path)
    return path


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats on both coordinates (larger is better), by the first one."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def _frame(axes: Axes, title: str, note: str, metric: Metric) -> None:
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=20)
    axes.text(0, 1.015, note, transform=axes.transAxes, fontsize=9, color="#6b7280")
    axes.set_xlabel("speedup of training time (times the baseline)", color=INK)
    which = "points" if metric.sign > 0 else "less is better, upwards"
    axes.set_ylabel(f"difference in {metric.spoken} to the baseline ({which})", color=INK)
    axes.xaxis.set_major_formatter("{x:.2g}x")
    axes.tick_params(colors=INK, length=0)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _cut(axes: Axes, rows: Sequence[Row], baseline: Row | None) -> None:
    """Leave out what is hopelessly below the baseline: it would flatten everything that matters."""
    if baseline is None:
        return
    metric, level = baseline.ranking, -max(16 * baseline.margin, 5 * (baseline.accuracy_std or 0.0))
    gains = [row.gain or 0.0 for row in rows]
    if not any(gain < level for gain in gains):
        return
    top = max(0.0, *gains)
    ends = level - 0.06 * (top - level), top + 0.22 * (top - level)
    axes.set_ylim(*sorted(map(metric.merit, ends)))
    for row in [row for row in rows if (row.gain or 0.0) < level]:
        colour = BLUE if row.role in SEARCHED else ORANGE
        axes.annotate(
            metric.text(row.difference or 0.0, signed=True),
            (row.speedup or 0.0, 0.005), xycoords=("data", "axes fraction"),
            xytext=(0, 22), textcoords="offset points", ha="center", fontsize=8, color=colour,
            arrowprops={"arrowstyle": "->", "color": colour, "alpha": 0.6},
        )  # fmt: skip


def _baseline(axes: Axes, row: Row) -> None:
    """The baseline, the band of its seeds, and how far below still counts as no loss."""
    spread = row.accuracy_std or 0.0
    axes.axhspan(-spread, spread, color=QUIET, alpha=0.22, linewidth=0, zorder=1)
    axes.axhline(0.0, color=QUIET, linewidth=1.2, zorder=1)
    still_good = row.ranking.merit(-row.margin)
    axes.axhline(still_good, color=QUIET, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    axes.annotate(
        f"margin {still_good:+g}", (1, still_good), xycoords=("axes fraction", "data"), xytext=(-4, -4),
        textcoords="offset points", ha="right", va="top", fontsize=8, color="#6b7280",
    )  # fmt: skip
    axes.scatter(
        [1.0], [0.0], s=90, marker="D", color=INK, zorder=5,
        label=f"baseline ({_value(row)}) ± std of {len(row.seeds)} seeds",
    )  # fmt: skip


def _value(row: Row) -> str:
    return f"{row.ranking.text(row.accuracy or 0.0)} {row.ranking.unit}".rstrip()


def _trials(axes: Axes, rows: Sequence[Row]) -> None:
    if rows:
        label = "trials: one seed, validation data"
        axes.scatter(*_points(rows), s=46, color=QUIET, alpha=0.75, linewidths=0, zorder=3, label=label)


def _front(axes: Axes, rows: Sequence[Row]) -> None:
    front = pareto_front([(row.speedup or 0.0, row.gain or 0.0) for row in rows])
    if len(front) > 1:
        speedups, gains = zip(*front, strict=True)
        differences = [rows[0].ranking.merit(gain) for gain in gains]
        axes.step(speedups, differences, where="pre", color=BLUE, linewidth=1.4, alpha=0.8, zorder=2,
                  label="Pareto front")  # fmt: skip


def _controls(axes: Axes, rows: Sequence[Row]) -> None:
    for marker, role in zip(MARKERS, dict.fromkeys(row.role for row in rows), strict=False):
        own = [row for row in rows if row.role == role]
        _with_bars(axes, own, marker=marker, color=ORANGE, label=f"control: {role}")


def _winners(axes: Axes, rows: Sequence[Row]) -> None:
    if not rows:
        return
    _with_bars(axes, rows, marker="o", color=GREEN, label="confirmed (bars: intervals)")
    for row in rows:
        assert row.speedup is not None and row.difference is not None
        settings = textwrap.fill(textwrap.shorten(row.settings, 160), 44)
        axes.annotate(
            f"{row.speedup:.2f}x, {row.verdict} ({len(row.seeds)} seeds)\n{settings}",
            (row.speedup, row.difference),
            xytext=(9, 9), textcoords="offset points", fontsize=8, color=INK, zorder=2.5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
        )  # fmt: skip


def _with_bars(axes: Axes, rows: Sequence[Row], *, marker: str, color: str, label: str) -> None:
    speedups, differences = _points(rows)
    across = [row.speedup_interval or (value, value) for row, value in zip(rows, speedups, strict=True)]
    along = [row.interval or (value, value) for row, value in zip(rows, differences, strict=True)]
    axes.errorbar(
        speedups,
        differences,
        xerr=_lengths(across, speedups),
        yerr=_lengths(along, differences),
        fmt=marker,
        color=color,
        ms=8,
        capsize=3,
        elinewidth=1.4,
        zorder=4,
        label=label,
    )


def _lengths(
    intervals: Sequence[tuple[float, float]], values: Sequence[float]
) -> tuple[list[float], list[float]]:
    """How far each interval reaches to either side of its value."""
    pairs = list(zip(intervals, values, strict=True))
    return [value - low for (low, _), value in pairs], [high - value for (_, high), value in pairs]


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row.speedup or 0.0 for row in rows], [row.difference or 0.0 for row in rows]
