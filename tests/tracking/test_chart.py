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
