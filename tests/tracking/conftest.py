"""A database shared by the tests of this folder, and runs written into it without training anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from raytrain_speedup.config import load_experiment
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.mlflow_log import RunLog


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return store.connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def experiment_name(request: pytest.FixtureRequest) -> str:
    return request.node.name


@pytest.fixture
def write(client: MlflowClient, experiment_name: str) -> Callable[..., str]:
    """Write a finished run; keyword arguments are figures, or `keys` of the experiment and its `role`."""
    into = store.experiment_id(client, experiment_name)

    def run(role: str, seed: int, *, keys: dict[str, Any] | None = None, **figures: Any) -> str:
        experiment = load_experiment("digits", {"pruning.method": "none", **(keys or {}), "train.seed": seed})
        log = RunLog.start(client, experiment, name=f"{role}-{seed}", into=into, role=role, margin=0.5)
        log.epoch({"epoch": 1, "val_accuracy": 50.0})
        known = {"train_seconds": 10.0, "passes_saved": 0.0, "train_flops": 1e9, "progress": 1.0}
        log.finish({**known, "baseline_key": "k", "hardware": "a desk", **figures})
        return log.run_id

    return run
