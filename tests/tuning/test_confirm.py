"""`speedup confirm`: seeds until there is a verdict, on a sweep that has none and on a single run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import space, tiny

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.schedule import load_schedule
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tuning.sweep import SweepResult, confirm, sweep

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making its tables takes longer than a sweep."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def go(target: str, uri: str, folder: Path, **options: Any) -> tuple[SweepResult, str]:
    screen = Console(file=io.StringIO(), width=160)
    result = confirm(target, tracking_uri=uri, out=folder, console=screen, trainable=tiny, **options)
    return result, screen.file.getvalue()  # type: ignore[attr-defined]


def test_a_sweep_that_is_not_yet_known_goes_on(tmp_path: Path, uri: str) -> None:
    """Three seeds leave a margin of .25 open; the plan is extended, only the new seeds run, and there is a schedule
    beside somebody's own."""
    file = space(tmp_path, [0.5], more="margin: 0.25")
    text = file.read_text().replace("name: tiny", "name: open")
    file.write_text(text.replace("{winners: 1}", "{winners: 1, max_seeds: 3, error: 0.01}"))
    screen = Console(file=io.StringIO(), width=160)
    first = sweep(file, tracking_uri=uri, out=tmp_path, console=screen, trainable=tiny)
    assert first.best is None and first.schedule is None
    assert "speedup confirm open --max-seeds N" in screen.file.getvalue()  # type: ignore[attr-defined]
    (tmp_path / "schedule.yaml").write_text("somebody's own\n")

    before = {run.run_id for run in store.records(open_tracker(uri), "open")}
    result, said = go("open", uri, tmp_path, max_seeds=9)
    after = store.records(open_tracker(uri), "open")
    assert {run.name for run in after if run.run_id not in before} == {
        f"{name}-seed{seed}"
        for name in ("baseline", "trial-01")
        for seed in range(3, result.best.seeds[-1] + 1)
    }  # type: ignore[union-attr]
    assert result.best is not None and result.best.verdict == "lossless"
    assert result.best.plan is not None and result.best.plan.error > 0.01, (
        "asking on costs error, and it is told"
    )
    assert "lossless" in said and "(schedule.yaml was there already" in said
    assert (tmp_path / "schedule.yaml").read_text() == "somebody's own\n"
    parent = open_tracker(uri).run(result.best.sweep)  # type: ignore[arg-type]
    assert (
        parent.tags["speedup.verdict"] == "lossless" and "prune_ratio=0.5" in parent.tags["speedup.settings"]
    )
    low, high = result.best.speedup_interval  # type: ignore[misc]
    assert (parent.metrics["speedup_low"], parent.metrics["speedup_high"]) == pytest.approx((low, high))
    assert parent.metrics["difference_low"] > -0.25
    evidence = load_schedule(tmp_path / "schedule-2.yaml").evidence
    assert evidence is not None and evidence.plan == result.best.plan.to_dict()


def test_the_setting_of_one_run_against_no_method(tmp_path: Path, uri: str) -> None:
    """A run of `speedup train` that loses six points: lossy, and nothing is exported."""
    tracker = open_tracker(uri)
    keys = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.8, "train.lr": 1e-3}
    experiment = load_experiment("digits", keys | {"scaling.storage": str(tmp_path / "runs")})
    log = RunLog.start(tracker, experiment, name="mine", into="single")
    known = {"accuracy": 84.0, "baseline_key": "tiny", "hardware": "a desk", "passes_saved": 0.4}
    log.finish(FinalMetrics.from_dict(known | {"train_seconds": 1.0, "progress": 1.0}))
    result, said = go(log.run_id[:8], uri, tmp_path, margin=1.0)
    (row,) = [row for row in result.rows if row.role == "winner"]
    assert row.verdict == "lossy" and row.seeds == (0, 1, 2) and row.difference == pytest.approx(-6.0)
    assert row.margin == 1.0 and "prune_ratio=0.8" in row.settings
    assert result.best is None and "no setting is proven lossless" in said
    assert [found.role for found in result.rows].count("baseline") == 1


def test_mistakes_are_reported(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="no such run"):
        go("nothing-of-the-kind", uri, tmp_path)
