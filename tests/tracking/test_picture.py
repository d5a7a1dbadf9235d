"""The picture, and the front in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from raytrain_speedup.tracking.leaderboard import Row
from raytrain_speedup.tracking.picture import draw, pareto_front

points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(found: list[tuple[float, float]]) -> None:
    front = pareto_front(found)
    assert front == sorted(front)
    for point in found:
        beaten = any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in found)
        assert (point in front) == (not beaten)


def row(role: str, speedup: float | None, accuracy: float | None, **more: object) -> Row:
    known = {"experiment": "x", "sweep": "s", "method": "infobatch", "settings": "prune_ratio=0.5"}
    ended = {"state": "finished", "run_id": "r", "run_ids": ("r",), "seeds": (0, 1, 2), "hardware": "a desk"}
    return Row(role=role, speedup=speedup, accuracy=accuracy, **{**known, **ended, **more})  # type: ignore[arg-type]


ROWS = [
    row("baseline", 1.0, 97.0, accuracy_std=0.3),
    row("trial", 1.5, 96.5, seeds=(3,)),
    row("trial", 2.1, 40.0, seeds=(3,)),
    row("winner", 1.4, 97.0, accuracy_std=0.2, verdict="lossless"),
    row("random", 1.4, 95.0, accuracy_std=0.2),
    row("trial", None, None, state="stopped"),
]


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[1:], ROWS[:1], []], ids=["all", "no baseline", "baseline", "none"]
)
def test_it_is_drawn_whatever_there_is(rows: list[Row], tmp_path: Path) -> None:
    picture = imread(draw(rows, tmp_path / "p.png", title="a sweep"))
    assert picture.shape[0] > 500 and picture.shape[1] > 800
    assert picture[..., :3].std() > 0
