"""A chart of the report: names beside points cover nothing and stay inside, however many there are."""

from __future__ import annotations

import re

import pytest

from raytrain_speedup.tracking.report.chart import BOTTOM, HEIGHT, LETTER, LINE, TOP, Point, axis, chart


def names(count: int) -> list[tuple[float, float, str]]:
    """Left end, height and text of the names of points that lie close together."""
    points = [
        Point(1 + i % 7 / 100, 0.01 * (i % 11), "winner", f"tip {i}", label=f"setting {i}")
        for i in range(count)
    ]
    x = axis("x", "{:.2f}".format, [0.5, 2.0])
    y = axis("y", "{:.2f}".format, [-1.0, 1.0])
    drawn = str(chart(x, y, points=points, name="many"))
    assert all(f"tip {i}<" in drawn for i in range(count)), "the point itself is there"
    found = re.findall(
        r'<text[^>]*?x="([\d.-]+)" y="([\d.-]+)"[^>]*class="label winner"[^>]*>([^<]+)<', drawn
    )
    return [(float(left), float(height), text) for left, height, text in found]


@pytest.mark.parametrize("count", [1, 12, 300])
def test_names_cover_nothing_and_stay_inside(count: int) -> None:
    found = names(count)
    assert found and (len(found) == count or count == 300), (
        "where there is no room, a name is left to the tip"
    )
    for i, (left, height, text) in enumerate(found):
        assert TOP <= height <= HEIGHT - BOTTOM
        for other_left, other_height, other in found[:i]:
            apart = left >= other_left + LETTER * len(other) or other_left >= left + LETTER * len(text)
            assert apart or abs(height - other_height) >= LINE - 0.1


def name_of(*trials: tuple[float, float]) -> tuple[float, float]:
    """The height of a name whose point is at (1, 0), and how far above or below it the closest trial is."""
    points = [Point(1.0, 0.0, "winner", "", label="setting"), *(Point(*at, "trial", "") for at in trials)]
    drawn = str(
        chart(axis("", str, [0.0, 2.0]), axis("", str, [-1.0, 1.0]), points=points, name="one among trials")
    )
    (height,) = re.findall(r'y="([\d.]+)"[^>]*class="label winner"', drawn)
    dots = [tuple(map(float, dot)) for dot in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    return float(height), min((abs(float(height) - up) for _, up in dots[1:]), default=LINE)


def test_a_name_covers_no_trial_where_there_is_room_nearby() -> None:
    alone, _ = name_of()
    height, distance = name_of((1.1, 0.03))
    assert height != alone and distance >= LINE


def test_where_there_is_none_it_covers_some() -> None:
    cloud = [(1.1, step / 20) for step in range(-20, 20)]
    height, distance = name_of(*cloud)
    assert height == name_of()[0] and distance < LINE
