"""The picture of a sweep: speedup against accuracy, with what cannot be beaten on both."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raytrain_speedup.tracking.leaderboard import SEARCHED, Row, metrics

INK, QUIET, BLUE, GREEN, ORANGE = "#1f2937", "#9ca3af", "#2563eb", "#059669", "#d97706"
MARKERS = ("s", "^", "v", "P", "X", "D")


def draw(rows: Sequence[Row], path: str | Path, *, title: str) -> Path:
    """Draw a sweep's leaderboard.

    Args:
        rows: of `leaderboard`; those without a speedup (no baseline, stopped early) are left out.
        path: the PNG to write.
        title: what to call it.
    """
    shown = [row for row in rows if row.speedup is not None and row.accuracy is not None]
    figure = Figure(figsize=(9, 5.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    _frame(axes, title, " · ".join(dict.fromkeys(row.hardware for row in shown)), metrics(shown))
    _baseline(axes, [row for row in shown if row.role == "baseline"])
    trials = [row for row in shown if row.role in ("trial", "run")]
    winners = [row for row in shown if row.role == "winner"]
    _front(axes, [row for row in shown if row.role in SEARCHED])
    _trials(axes, trials)
    _controls(axes, [row for row in shown if row.role not in ("baseline", "run", *SEARCHED)])
    _winners(axes, winners)
    axes.margins(x=0.12, y=0.16)
    _cut(axes, shown)
    if shown:
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


def _frame(axes: Axes, title: str, note: str, metric: str) -> None:
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=20)
    axes.text(0, 1.015, note, transform=axes.transAxes, fontsize=9, color="#6b7280")
    axes.set_xlabel("speedup of training time (times the baseline)", color=INK)
    axes.set_ylabel(f"test {metric} (%)", color=INK)
    axes.xaxis.set_major_formatter("{x:.2g}x")
    axes.tick_params(colors=INK, length=0)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _cut(axes: Axes, rows: Sequence[Row]) -> None:
    """Leave out what is hopelessly below the baseline: it would flatten everything that matters."""
    for baseline in [row for row in rows if row.role == "baseline"][:1]:
        level = (baseline.accuracy or 0.0) - max(16 * baseline.margin, 5 * (baseline.accuracy_std or 0.0))
        below = [row for row in rows if (row.accuracy or 0.0) < level]
        if not below:
            return
        bottom, top = level, max(row.accuracy or 0.0 for row in rows)
        axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.22 * (top - bottom))
        for row in below:
            colour = BLUE if row.role in SEARCHED else ORANGE
            axes.annotate(
                f"{row.accuracy:.1f}", (row.speedup or 0.0, 0.005), xycoords=("data", "axes fraction"),
                xytext=(0, 22), textcoords="offset points", ha="center", fontsize=8, color=colour,
                arrowprops={"arrowstyle": "->", "color": colour, "alpha": 0.6},
            )  # fmt: skip


def _baseline(axes: Axes, rows: Sequence[Row]) -> None:
    """The baseline, the band of its seeds, and how far below still counts as no loss."""
    for row in rows[:1]:
        assert row.accuracy is not None
        spread = row.accuracy_std or 0.0
        low, high = row.accuracy - spread, row.accuracy + spread
        axes.axhspan(low, high, color=QUIET, alpha=0.22, linewidth=0, zorder=1)
        axes.axhline(row.accuracy, color=QUIET, linewidth=1.2, zorder=1)
        floor = row.accuracy - row.margin
        axes.axhline(floor, color=QUIET, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        axes.annotate(
            f"margin -{row.margin:g}", (1, floor), xycoords=("axes fraction", "data"), xytext=(-4, -4),
            textcoords="offset points", ha="right", va="top", fontsize=8, color="#6b7280",
        )  # fmt: skip
        axes.scatter(
            [1.0], [row.accuracy], s=90, marker="D", color=INK, zorder=5,
            label=f"baseline ± std of {len(row.seeds)} seeds",
        )  # fmt: skip


def _trials(axes: Axes, rows: Sequence[Row]) -> None:
    if rows:
        axes.scatter(*_points(rows), s=46, color=BLUE, alpha=0.55, linewidths=0, zorder=3, label="trials")


def _front(axes: Axes, rows: Sequence[Row]) -> None:
    front = pareto_front(list(zip(*_points(rows), strict=True)))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="pre", color=BLUE, linewidth=1.4, alpha=0.8, zorder=2,
                  label="Pareto front")  # fmt: skip


def _controls(axes: Axes, rows: Sequence[Row]) -> None:
    for marker, role in zip(MARKERS, dict.fromkeys(row.role for row in rows), strict=False):
        own = [row for row in rows if row.role == role]
        _with_bars(axes, own, marker=marker, color=ORANGE, label=f"control: {role}")


def _winners(axes: Axes, rows: Sequence[Row]) -> None:
    if not rows:
        return
    _with_bars(axes, rows, marker="o", color=GREEN, label=f"confirmed over {len(rows[0].seeds)} seeds")
    for row in rows:
        assert row.speedup is not None and row.accuracy is not None
        settings = textwrap.fill(textwrap.shorten(row.settings, 160), 44)
        axes.annotate(
            f"{row.speedup:.2f}x, {row.verdict}\n{settings}", (row.speedup, row.accuracy),
            xytext=(9, 9), textcoords="offset points", fontsize=8, color=INK, zorder=2.5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
        )  # fmt: skip


def _with_bars(axes: Axes, rows: Sequence[Row], *, marker: str, color: str, label: str) -> None:
    bars = [row.accuracy_std or 0.0 for row in rows]
    axes.errorbar(
        *_points(rows),
        yerr=bars,
        fmt=marker,
        color=color,
        ms=8,
        capsize=3,
        elinewidth=1.4,
        zorder=4,
        label=label,
    )


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row.speedup or 0.0 for row in rows], [row.accuracy or 0.0 for row in rows]
