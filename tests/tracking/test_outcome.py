"""A sweep's answer, found in MLflow alone: metrics, tags, and a note with the verdict, the plot and the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from raytrain_speedup.tracking.leaderboard import leaderboard
from raytrain_speedup.tracking.outcome import control_sentence, log_outcome
from raytrain_speedup.tracking.plot import plot_leaderboard
from raytrain_speedup.tracking.tracker import Tracker

KEYS = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.4}


@pytest.fixture
def sweep(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> Callable[..., Any]:
    """Write a sweep whose winner loses so much, and its outcome; gives the data of its own run in MLflow."""

    def outcome(loss: float, **controls: float) -> Any:
        """`controls` are the training seconds of each; but for `lossy` they are as accurate as the
        baseline."""
        parent = tracker.start(experiment_name, "sweep", {"speedup.sweep": "k"})
        for seed in range(3):
            write("baseline", seed, parent=parent, accuracy=97.0 + seed, train_seconds=10 + seed / 10)
            write("winner", seed, keys=KEYS, parent=parent, accuracy=97.0 - loss + seed, train_seconds=5.0)
            for control, seconds in controls.items():
                keys = {"pruning.method": "random", "pruning.saving": seconds / 20}
                accuracy = 97.0 + seed - 5 * (control == "lossy")
                write(control, seed, keys=keys, parent=parent, accuracy=accuracy, train_seconds=seconds)
        write("trial", 9, keys=KEYS | {"pruning.prune_ratio": 0.9}, parent=parent, val_accuracy=9.0)
        rows = leaderboard(experiment_name, tracker.uri, parent=parent)
        plot = plot_leaderboard(rows, tmp_path / "leaderboard.png", title="x")
        log_outcome(tracker, parent, rows, plot)
        return MlflowClient(tracker.uri).get_run(parent), rows

    return outcome


def test_a_proven_setting(sweep: Callable[..., Any], tracker: Tracker) -> None:
    run, rows = sweep(0.1)
    winner = next(row for row in rows if row.role == "winner")
    found = run.data.metrics
    assert found["speedup"] == pytest.approx(2.02, rel=1e-3) and found["difference"] == pytest.approx(-0.1)
    assert (found["speedup_low"], found["speedup_high"]) == pytest.approx(winner.speedup_interval)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx(winner.interval)
    assert (found["accuracy"], found["baseline_accuracy"], found["seeds"]) == pytest.approx((97.9, 98.0, 3))
    tags = run.data.tags
    assert (tags["speedup.verdict"], tags["speedup.method"]) == ("lossless", "infobatch")
    assert tags["speedup.settings"] == "infobatch prune_ratio=0.4" and tags["speedup.data"] == "digits"
    note = tags["mlflow.note.content"]
    assert "**infobatch prune_ratio=0.4 trains 2.02 times as fast, -0.10 points" in note
    assert (
        f"![speedup against accuracy](get-artifact?path=leaderboard.png&run_uuid={run.info.run_id})" in note
    )
    lines = [line for line in note.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1
    assert f"speedup export {winner.run_id[:8]} -o" in note
    assert "leaderboard.png" in [
        file.path for file in MlflowClient(tracker.uri).list_artifacts(run.info.run_id)
    ]
    verdicts = [tracker.run(run_id).tags.get("speedup.verdict") for row in rows for run_id in row.run_ids]
    assert verdicts.count("lossless") == 3 and verdicts.count(None) == 4, "of the winner's runs alone"


def test_nothing_proven(sweep: Callable[..., Any]) -> None:
    run, _ = sweep(5.0)
    assert run.data.tags["speedup.verdict"] == "lossy" and run.data.metrics["difference"] == pytest.approx(
        -5.0
    )
    note = run.data.tags["mlflow.note.content"]
    assert "**No setting is proven lossless; the safest is infobatch prune_ratio=0.4.**" in note
    assert "speedup export" not in note


def test_a_control_that_does_as_well_is_named(sweep: Callable[..., Any]) -> None:
    """At no lower speed than the winner's interval allows; the fastest, and only where it is lossless."""
    run, rows = sweep(0.1, slow=8.0, random=5.0, fast=4.0, lossy=2.0)
    said = "So does a control: fast saving=0.2 is lossless at 2.5"
    assert said in run.data.tags["mlflow.note.content"] and control_sentence(rows).startswith(said)
    assert control_sentence([row for row in rows if row.role != "fast"]).startswith(
        "So does a control: random"
    )
    assert control_sentence([row for row in rows if row.role not in ("fast", "random")]) is None
    assert control_sentence(sweep(5.0, random=4.0)[1]) is None, "nothing is proven"
