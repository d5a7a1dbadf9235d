"""A database shared by the tests of this folder, and runs written into it without training anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.statistics.verdict import Plan
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return open_tracker(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def experiment_name(request: pytest.FixtureRequest) -> str:
    return request.node.name


@pytest.fixture
def write(tracker: Tracker, experiment_name: str) -> Callable[..., str]:
    """Write a finished run; keyword arguments are metrics, or `keys` of the experiment, its `role` and the sweep's
    `plan`, `margin` and `parent`. It cost as many reference steps as seconds."""

    def run(
        role: str,
        seed: int,
        *,
        keys: dict[str, Any] | None = None,
        plan: Plan | None = None,
        margin: float = 0.5,
        parent: str | None = None,
        **metrics: Any,
    ) -> str:
        experiment = load_experiment("digits", {"pruning.method": "none", **(keys or {}), "train.seed": seed})
        name = f"{role}-{seed}"
        sweep = {"plan": plan, "margin": margin, "parent": parent}
        log = RunLog.start(tracker, experiment, name=name, into=experiment_name, role=role, **sweep)  # type: ignore[arg-type]
        log.epoch({"epoch": 1, "val_accuracy": 50.0})
        known = {"train_seconds": 10.0, "passes_saved": 0.0, "progress": 1.0} | metrics
        seconds = known["train_seconds"]
        cost = {"train_flops": 1e8 * seconds, "reference_steps": seconds, "reference_batch": 8.0}
        where = {"baseline_key": "k", "hardware": "a desk", "setup": "batch 64", "seed": seed}
        log.finish(FinalMetrics.from_dict({**where, **cost, **known}))
        return log.run_id

    return run
