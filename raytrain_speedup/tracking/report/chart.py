"""Points and lines over two axes as SVG, whose colours and sizes are those of the page it stands in.

Matplotlib's own SVG has letters as paths and colours for one background: a hundred kilobytes a plot that a dark
page and a telephone cannot read. Its ticks are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from raytrain_speedup.tracking.report.html import Html, element

Number = Callable[[float], str]
Interval = tuple[float, float]

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 92, 18, 14, 74
LETTER, LINE, DOT = 7.0, 17, 8
"""About the size of a label's letters and of a dot, to see where a label has room."""

PHONE = 1.5
"""Times that letters are larger there, in `page.css`."""

SHIFTS = [step * 7 * sign for step in range(1, 60) for sign in (-1, 1)]
"""Where a label may stand, seen from its point: as close as there is room."""

NEAR = 60
"""How far a name goes out of an unnamed point's way."""

TICKS = 5
POINTS_OF_A_LINE = 120


@dataclass(frozen=True)
class Point:
    """A setting. `kind` is its class in the style sheet, `tip` what is said of it, `run` the row it belongs to."""

    x: float
    y: float
    kind: str
    tip: str
    run: str = ""
    x_interval: Interval | None = None
    y_interval: Interval | None = None
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A run over time, or a front."""

    points: Sequence[tuple[float, float]]
    kind: str
    tip: str = ""
    run: str = ""
    steps: bool = False


@dataclass(frozen=True)
class Axis:
    """What is drawn in one direction, and how its numbers are written."""

    label: str
    form: Number
    low: float
    high: float
    ticks: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        found = MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = tuple(float(tick) for tick in found if self.low <= tick <= self.high)
        object.__setattr__(self, "ticks", inside)

    def fraction(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies beyond is drawn at the edge."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def axis(label: str, form: Number, values: Sequence[float], *, margin: float = 0.07) -> Axis:
    """An axis that holds all values and a margin."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    more = margin * (high - low) if high > low else 0.1 * abs(high) or 1.0
    return Axis(label, form, low - more, high + more)


def chart(
    x: Axis,
    y: Axis,
    *,
    points: Sequence[Point] = (),
    lines: Sequence[Line] = (),
    levels: Sequence[tuple[float, str]] = (),
    name: str,
) -> Html:
    """An SVG.

    Args:
        levels: heights with a line across, and what it says.
        name: what it shows, for who cannot see it.
    """
    return element(
        "svg",
        _frame(x, y),
        [_level(y, height, text) for height, text in levels],
        [_line(x, y, line) for line in lines],
        [_point(x, y, point) for point in points],
        _labels(x, y, points),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=name,
    )


def _across(x: Axis, value: float) -> str:
    return f"{LEFT + x.fraction(value) * (WIDTH - LEFT - RIGHT):.1f}"


def _up(y: Axis, value: float) -> str:
    return f"{HEIGHT - BOTTOM - y.fraction(value) * (HEIGHT - TOP - BOTTOM):.1f}"


def _frame(x: Axis, y: Axis) -> list[Html]:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    grid = []
    for tick in y.ticks:
        height = _up(y, tick)
        grid.append(element("line", x1=LEFT, x2=right, y1=height, y2=height, class_="grid"))
        grid.append(_text(y.form(tick), LEFT - 8, height, "end", dy=".35em"))
    for tick in x.ticks:
        place = _across(x, tick)
        grid.append(element("line", x1=place, x2=place, y1=TOP, y2=floor, class_="grid"))
        grid.append(_text(x.form(tick), place, floor, "middle", dy="1.4em"))
    middle = (TOP + floor) / 2
    return [
        *grid,
        _text(x.label, (LEFT + right) / 2, HEIGHT, "middle", dy="-.5em"),
        element(
            "text", y.label, text_anchor="middle", transform=f"translate(0 {middle}) rotate(-90)", dy="1em"
        ),
    ]


def _text(text: str, x: object, y: object, anchor: str, **more: object) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor, **more)


def _level(y: Axis, height: float, text: str) -> list[Html]:
    place, right = _up(y, height), WIDTH - RIGHT
    return [
        element("line", x1=LEFT, x2=right, y1=place, y2=place, class_="level"),
        _text(text, right - 4, place, "end", dy="1.2em", class_="quiet"),
    ]


def _line(x: Axis, y: Axis, line: Line) -> Html:
    every = max(1, len(line.points) // POINTS_OF_A_LINE)
    kept = [*line.points[:-1:every], *line.points[-1:]]
    placed = [(_across(x, across), _up(y, up)) for across, up in kept]
    if line.steps:
        placed = [corner for (before, _), end in pairwise(placed) for corner in ((before, end[1]), end)]
    path = " ".join(f"{across},{up}" for across, up in placed)
    title = element("title", line.tip) if line.tip else None
    return element(
        "g", title, element("polyline", points=path), class_=f"line {line.kind}", data_run=line.run or None
    )


def _point(x: Axis, y: Axis, point: Point) -> Html:
    across, up = _across(x, point.x), _up(y, point.y)
    bars = []
    if point.x_interval is not None:
        low, high = (_across(x, end) for end in point.x_interval)
        bars.append(element("line", x1=low, x2=high, y1=up, y2=up, class_="bar"))
    if point.y_interval is not None:
        low, high = (_up(y, end) for end in point.y_interval)
        bars.append(element("line", x1=across, x2=across, y1=low, y2=high, class_="bar"))
    below = point.y < y.low
    mark = (
        element("path", d=f"M{across} {up}l-6 -10h12z")
        if below
        else element("circle", cx=across, cy=up, r=4 if point.kind == "trial" else 6)
    )
    return element(
        "g",
        element("title", point.tip),
        bars,
        mark,
        class_=f"point {point.kind}",
        data_run=point.run or None,
        tabindex=0,
    )


def _labels(x: Axis, y: Axis, points: Sequence[Point]) -> list[Html]:
    """The points' names beside them, each moved up or down until it covers no other name and no point, or at least
    no named one; where there is no room, a name is left to the point's tip."""
    taken, others = (
        [
            (float(_up(y, point.y)), float(_across(x, point.x)) - DOT, float(_across(x, point.x)) + DOT)
            for point in points
            if bool(point.label) == named
        ]
        for named in (True, False)
    )
    found = []
    for point in points:
        below = point.y < y.low
        text = f"{point.label} {y.form(point.y)}".strip() if below else point.label
        if not text:
            continue
        across, up, length = float(_across(x, point.x)), float(_up(y, point.y)), LETTER * len(text)
        beyond = across + 10 + PHONE * length > WIDTH
        left = across - 10 - length if beyond else across + 10
        right = left + length
        heights = [up + shift for shift in SHIFTS if TOP <= up + shift <= HEIGHT - BOTTOM]
        free = [height for height in heights if _is_free(taken, height, left, right)]
        near = [
            height for height in free if abs(height - up) <= NEAR and _is_free(others, height, left, right)
        ]
        if not free:
            continue
        place = (near or free)[0]
        taken.append((place, left, right))
        found.append(_text(text, f"{left:.0f}", f"{place:.1f}", "start", class_=f"label {point.kind}"))
    return found


def _is_free(taken: Sequence[tuple[float, float, float]], height: float, left: float, right: float) -> bool:
    """Whether a line of text there covers none of those that are placed: (height, left, right)."""
    return not any(abs(height - other) < LINE and left < end and start < right for other, start, end in taken)
