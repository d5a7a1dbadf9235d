"""A sweep of a metric of which less is better, from real runs to the leaderboard, the plot and the schedule."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.metric import Metric
from raytrain_speedup.schedule import load_schedule
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.export import export
from raytrain_speedup.tracking.leaderboard import Row, best, leaderboard, safest
from raytrain_speedup.tracking.plot import plot_leaderboard
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tracking.table import show

TASK = '''
from raytrain_speedup.tasks.classification import Classification


class Nats(Classification):
    """Ranked by the cross-entropy."""

    metric, direction = "nats", "min"

    def metrics(self, totals, split):
        return super().metrics(totals, split) | {"nats": totals.tolist()[0] / totals.tolist()[2]}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nats")
    (folder / "nats_task.py").write_text(TASK)
    return folder


def experiment(folder: Path, **keys: Any) -> Experiment:
    known = {
        "python_path": [str(folder)],
        "task.kind": "nats_task:Nats",
        "pruning.method": "none",
        "data.image_size": 8,
        "data.val_fraction": 0.84,
        "train.batch_size": 64,
        "train.threads": 1,
        "train.checkpoint_every": 0,
        "tracking.uri": f"json:{folder / 'runs'}",
        "tracking.experiment": "nats",
    }
    return load_experiment("digits", known | {key.replace("__", "."): value for key, value in keys.items()})


def test_real_runs_end_in_the_right_order(folder: Path) -> None:
    """The one that hardly learns has more of the loss, and comes last."""
    tracker = open_tracker(f"json:{folder / 'runs'}")
    parent = tracker.start("nats", "sweep", {})
    found: dict[str, FinalMetrics] = {}
    infobatch = {"pruning__method": "infobatch"}
    for name, keys in {"bad": infobatch | {"train__lr": 1e-5}, "good": infobatch, "baseline": {}}.items():
        one, role = (
            experiment(folder, train__epochs=2, **keys),
            "baseline" if name == "baseline" else "winner",
        )
        log = RunLog.start(tracker, one, name=name, into="nats", role=role, parent=parent, margin=0.01)
        found[name] = run(one, LocalReporter(folder / name, log), device=torch.device("cpu"))
    assert found["good"].metric == Metric("nats", "min")
    assert found["good"].metrics["nats"] < found["bad"].metrics["nats"]
    assert found["good"].of("test") == pytest.approx(found["good"].metrics["test_loss"])
    board = leaderboard("nats", tracker.uri, parent=parent)
    assert [row.accuracy for row in board] == [found[name].of("test") for name in ("baseline", "good", "bad")]
    assert board[2].difference == found["bad"].metrics["nats"] - found["baseline"].metrics["nats"] > 0
    assert board[2].gain == -board[2].difference


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    """A winner with a little more of the loss and a faster one with much more, a control with less than the
    baseline, and trials of either kind."""
    uri = f"json:{folder / 'written'}"
    tracker = open_tracker(uri)
    parent = tracker.start("nats", "sweep", {})

    def write(role: str, seed: int, nats: float, seconds: float, ratio: float = 0.0) -> None:
        method = {} if role == "baseline" else {"pruning__method": "infobatch", "pruning__prune_ratio": ratio}
        one = experiment(folder, train__seed=seed, **method)
        log = RunLog.start(
            tracker, one, name=f"{role}-{seed}", into="nats", role=role, parent=parent, margin=0.1
        )
        key = "val_nats" if role == "trial" else "nats"
        known = {
            "metric": "nats",
            "direction": "min",
            key: nats,
            "val_nats": nats,
            "progress": 1.0,
            "seed": seed,
        }
        log.finish(FinalMetrics.from_dict(known | {"train_seconds": seconds, "passes_saved": ratio / 2}))

    for seed in range(3):
        noise = 0.001 * seed * (seed - 1)
        write("baseline", seed, 1.0 + 0.01 * seed, 10.0)
        write("winner", seed, 1.02 + 0.01 * seed + noise, 8.0, 0.3)
        write("winner", seed, 1.5 + 0.01 * seed + noise, 4.0, 0.8)
        write("random", seed, 0.9 + 0.01 * seed + noise, 9.0, 0.2)
    write("trial", 7, 1.3, 5.0, 0.6)
    write("trial", 7, 1.2, 5.0, 0.4)
    return leaderboard("nats", uri, parent=parent)


def test_the_board_puts_less_of_it_above(rows: list[Row]) -> None:
    """Lossless before lossy; where neither is known, the least lost first."""
    assert [(row.role, row.settings, row.verdict) for row in rows] == [
        ("baseline", "", None),
        ("winner", "prune_ratio=0.3", "lossless"),
        ("random", "prune_ratio=0.2", "lossless"),
        ("winner", "prune_ratio=0.8", "lossy"),
        ("trial", "prune_ratio=0.4", None),
        ("trial", "prune_ratio=0.6", None),
    ]
    chosen, least = best(rows), safest(rows)
    assert chosen is least is rows[1], "the other winner is faster, and has more of the loss"
    assert rows[1].difference == pytest.approx(0.02, abs=1e-3) and rows[2].difference == pytest.approx(
        -0.1, abs=1e-3
    )


def test_it_is_shown_as_it_is(rows: list[Row]) -> None:
    screen = Console(file=io.StringIO(), width=140)
    show(rows, screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    heading = next(line for line in text.splitlines() if line.split()[:1] == ["method"])
    assert heading.split()[:3] == ["method", "nats", "difference"], "without %"
    assert "+0.02067" in text and "1.031" in text


def test_better_is_above_in_the_plot(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    plot_leaderboard(rows, tmp_path / "p.png", title="nats")
    (axes,) = drawn[0].axes
    below, above = axes.get_ylim()
    assert below > above and "less is better" in axes.get_ylabel()
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    assert list(front.get_xdata()) == pytest.approx([10 / 9, 10 / 8, 10 / 4], rel=1e-3)
    margins = [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert margins == [0.1], "above 0: so much more still counts as no loss"


def test_the_schedule_says_so(rows: list[Row], folder: Path, tmp_path: Path) -> None:
    export(rows[1].run_id, tmp_path / "s.yaml", f"json:{folder / 'written'}")
    schedule = load_schedule(tmp_path / "s.yaml")
    assert schedule.proven and schedule.evidence is not None
    assert (schedule.evidence.metric, schedule.evidence.direction) == ("nats", "min")
    assert "+0.02067 in nats [" in schedule.headline()
