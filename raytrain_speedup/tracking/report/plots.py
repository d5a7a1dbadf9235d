"""The plots of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import EngFormatter

from raytrain_speedup.metric import spoken
from raytrain_speedup.tracking.leaderboard import Row
from raytrain_speedup.tracking.outcome import row_in_words
from raytrain_speedup.tracking.plot import cut_level, pareto_front
from raytrain_speedup.tracking.report.chart import Axis, Interval, Line, Point, axis, chart
from raytrain_speedup.tracking.report.content import Curve, Report
from raytrain_speedup.tracking.report.html import Html, element, joined
from raytrain_speedup.tracking.report.words import margin_of

MOST_POINTS = 400
"""Trials of the front's plot, the best: more are a cloud, and megabytes."""

COMPUTE_LABELS = {
    "train_flops": "training FLOPs",
    "compute_spent": "compute spent (fraction of the budget)",
    "samples_shown": "samples shown",
}


def front(report: Report) -> Html | None:
    """Speedup against the difference, both with their intervals; None where nothing was compared."""
    rows = [row for row in (*report.trials[:MOST_POINTS], *report.confirmed) if _drawn(row)]
    if not rows:
        return None
    points = [_point(row, report) for row in rows]
    baseline = report.baseline
    cut = None if baseline is None else cut_level(baseline, rows)
    if baseline is not None:
        value = baseline.ranking.text(baseline.accuracy or 0.0)
        tip = f"baseline: {value} {baseline.ranking.unit} over {len(baseline.seeds)} seeds"
        points.append(Point(1.0, 0.0, "baseline", tip, run=baseline.run_id, label="baseline"))
    spans = [(point.x, point.x_interval) for point in points]
    x = axis("speedup (times the baseline)", "{:.3g}x".format, _shown(spans, at_least=0.1))
    y = _of_differences(points, rows[0], cut)
    confirmed = [(row.speedup or 0.0, row.gain or 0.0) for row in rows if row.role != "trial"]
    edge = pareto_front(confirmed)
    margin = rows[0].margin
    return chart(
        x,
        y,
        points=points,
        lines=[Line(edge, "front", "Pareto front of what was confirmed", steps=True)]
        if len(edge) > 1
        else [],
        levels=[(-margin, f"margin: {margin_of(rows[0])}")] if y.low < -margin < y.high else [],
        name="Speedup against the difference in quality, of every setting",
    )


def _drawn(row: Row) -> bool:
    return row.speedup is not None and row.difference is not None


def _of_differences(points: Sequence[Point], row: Row, cut: float | None) -> Axis:
    """Of gains: what is better is above, also where less is better."""
    metric = row.ranking
    label = (
        f"difference in {metric.spoken} (points)"
        if metric.sign > 0
        else f"{metric.spoken} below the baseline"
    )
    spans = [(point.y, point.y_interval) for point in points if cut is None or point.y >= cut]
    ends = _shown(spans, at_least=2 * row.margin)
    return axis(label, _signed, [cut, *ends] if cut is not None else ends)


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _shown(values: Sequence[tuple[float, Interval | None]], *, at_least: float) -> list[float]:
    """The ends of what is drawn: all points, and of their intervals as much as leaves the points apart. Two seeds
    may have bounds of which nobody would see another thing."""
    middles = [value for value, _ in values]
    room = max(max(middles) - min(middles), at_least)
    low, high = min(middles) - room, max(middles) + room
    ends = [end for _, interval in values if interval is not None for end in interval]
    return [*middles, *(min(high, max(low, end)) for end in ends)]


def _point(row: Row, report: Report) -> Point:
    interval = None if row.interval is None else sorted(map(row.ranking.merit, row.interval))
    tip = f"{row_in_words(row)}; {report.ids[row.run_id]}"
    return Point(
        row.speedup or 0.0, row.gain or 0.0, kind_of(row), tip, run=row.run_id,
        x_interval=row.speedup_interval, y_interval=None if interval is None else (interval[0], interval[1]),
        label="" if row.role == "trial" else row.label if row.role not in ("winner", "run") else row.settings,
    )  # fmt: skip


def kind_of(row: Row) -> str:
    """Its class in the style sheet."""
    return row.role if row.role in ("baseline", "trial", "winner", "run") else "control"


def learning_curves(report: Report) -> list[Html]:
    """Quality over compute, and over time; none where no run was evaluated twice."""
    if not report.curves:
        return []
    first = report.curves[0]
    alike = [curve for curve in report.curves if curve.compute == first.compute]
    drawn = [
        _curves(alike, [curve.by_compute for curve in alike], COMPUTE_LABELS[first.compute]),
        _curves(report.curves, [curve.by_time for curve in report.curves], "training seconds"),
    ]
    return [svg for svg in drawn if svg is not None]


def _curves(
    curves: Sequence[Curve], pairs: Sequence[Sequence[tuple[float, float]]], label: str
) -> Html | None:
    values = [pair for one in pairs for pair in one]
    if not values:
        return None
    metric = f"validation {spoken(curves[0].row.metric)}"
    x = axis(label, EngFormatter(sep=""), [0.0, *(across for across, _ in values)], margin=0.02)
    y = axis(metric, "{:.4g}".format, [up for _, up in values])
    lines = [
        Line(one, kind_of(curve.row), _tip(curve, one), run=curve.row.run_id)
        for curve, one in zip(curves, pairs, strict=True)
        if len(one) > 1
    ]
    return chart(x, y, lines=lines[::-1], name=f"{metric} against {label}")


def _tip(curve: Curve, pairs: Sequence[tuple[float, float]]) -> str:
    return f"{curve.row.label} {curve.row.settings}: ends at {pairs[-1][1]:.4g} after {pairs[-1][0]:.3g}"


def importance_bars(objective: str, importances: Mapping[str, float]) -> Html:
    """A bar for each searched key, the most important first."""
    rows = [
        element(
            "tr",
            element("th", key, scope="row"),
            element("td", element("span", style=f"width:{100 * value:.1f}%"), class_="bar"),
            element("td", f"{value:.0%}", class_="number"),
        )
        for key, value in sorted(importances.items(), key=lambda pair: -pair[1])
    ]
    caption = element("caption", f"for {spoken(objective)}")
    return joined(element("table", caption, element("tbody", rows), class_="bars"))
