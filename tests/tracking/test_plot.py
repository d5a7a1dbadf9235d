"""The plot, and the front in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from raytrain_speedup.engine.compare import Comparison
from raytrain_speedup.engine.cost.speedup import Speedup
from raytrain_speedup.engine.statistics.verdict import Look
from raytrain_speedup.metric import ACCURACY
from raytrain_speedup.tracking.leaderboard import Row
from raytrain_speedup.tracking.plot import pareto_front, plot_leaderboard

points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(found: list[tuple[float, float]]) -> None:
    front = pareto_front(found)
    assert front == sorted(front)
    for point in found:
        beaten = any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in found)
        assert (point in front) == (not beaten)


def row(role: str, speedup: float | None, difference: float = 0.0, **more: object) -> Row:
    known = {"experiment": "x", "sweep": "s", "method": "infobatch", "settings": "prune_ratio=0.5"}
    ended = {"state": "finished", "run_id": "r", "run_ids": ("r",), "seeds": (0, 1, 2), "hardware": "a desk"}
    found = None
    if speedup is not None:
        cost = Speedup(speedup, (speedup - 0.1, speedup + 0.2), "reference steps", speedup, None)
        look = Look(3, 3, difference, 0.1, (difference - 0.3, difference + 0.4), "lossless", 0, None)
        found = Comparison(ACCURACY, "test", (0, 1, 2), 97 + difference, 0.2, 97.0, look, cost, 0.3)
    return Row(role=role, comparison=found, **{"accuracy": 97 + difference, **known, **ended, **more})  # type: ignore[arg-type]


ROWS = [
    row("baseline", None, accuracy_std=0.3),
    row("trial", 1.5, -0.5, seeds=(3,)),
    row("trial", 2.1, -57.0, seeds=(3,)),
    row("winner", 1.4),
    row("random", 1.3, -2.0),
    row("trial", None, accuracy=None, state="stopped"),
]


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[1:], ROWS[:1], []], ids=["all", "no baseline", "baseline", "none"]
)
def test_it_is_drawn_whatever_there_is(rows: list[Row], tmp_path: Path) -> None:
    plot = imread(plot_leaderboard(rows, tmp_path / "p.png", title="a sweep"))
    assert plot.shape[0] > 500 and plot.shape[1] > 800
    assert plot[..., :3].std() > 0


def test_both_bars_are_intervals_and_the_front_is_of_confirmed_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    plot_leaderboard(ROWS, tmp_path / "p.png", title="a sweep")
    (axes,) = drawn[0].axes
    bars = {container.get_label(): container for container in axes.containers}
    _, _, (across, along) = bars["confirmed (bars: intervals)"]
    assert across.get_segments()[0][:, 0] == pytest.approx([1.3, 1.6])
    assert along.get_segments()[0][:, 1] == pytest.approx([-0.3, 0.4])
    front = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    assert not front, "the control is beaten by the winner, and a trial is never on it"
    plot_leaderboard([*ROWS, row("winner", 1.9, -0.2)], tmp_path / "p.png", title="a sweep")
    (front_line,) = [line for line in drawn[1].axes[0].get_lines() if line.get_label() == "Pareto front"]
    assert front_line.get_xdata() == pytest.approx([1.4, 1.9])
