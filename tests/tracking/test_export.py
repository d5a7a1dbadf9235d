"""From a run in MLflow to the schedule file and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from raytrain_speedup.schedule import load_schedule
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.export import ALIAS, export, find

KEYS = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.4}


def test_a_winner_with_its_evidence(
    client: MlflowClient, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        run = write("winner", seed, keys=KEYS, accuracy=97.0 + seed, train_seconds=5.0, passes_saved=0.4)
    exported = export(run[:10], tmp_path / "s.yaml", client.tracking_uri)
    schedule = load_schedule(tmp_path / "s.yaml")
    assert schedule == exported
    assert schedule.tuned_on.run_id == run and schedule.tuned_on.data["source"] == "digits"
    evidence = schedule.evidence
    assert evidence is not None and evidence.seeds == (0, 1, 2)
    assert evidence.speedup == pytest.approx(2.0) and evidence.verdict == "lossless"
    for address in (f"runs:/{run}/schedule", f"models:/{experiment_name}-schedule@{ALIAS}"):
        folder = mlflow.artifacts.download_artifacts(
            address, dst_path=str(tmp_path), tracking_uri=client.tracking_uri
        )
        assert load_schedule(next(Path(folder).rglob("schedule.yaml"))) == schedule


def test_the_evidence_of_a_trial_is_that_of_its_settings(
    client: MlflowClient, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0)
        write("winner", seed, keys=KEYS, accuracy=96.9, train_seconds=5.0)
    trial = write("trial", 3, keys=KEYS, accuracy=99.0, train_seconds=1.0)
    evidence = export(trial, tmp_path / "s.yaml", client.tracking_uri).evidence
    assert evidence is not None and evidence.seeds == (0, 1, 2) and evidence.accuracy == pytest.approx(96.9)


def test_the_evidence_names_its_metric(
    client: MlflowClient, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    write("baseline", 0, metric="miou", miou=60.0)
    run = write("winner", 0, keys=KEYS, metric="miou", miou=61.0)
    evidence = export(run, tmp_path / "s.yaml", client.tracking_uri).evidence
    assert evidence is not None and evidence.metric == "miou"
    assert evidence.accuracy == 61.0 and evidence.baseline_accuracy == 60.0
    assert load_schedule(tmp_path / "s.yaml").evidence == evidence


def test_a_run_without_a_baseline_has_no_evidence(
    client: MlflowClient, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    run = write("run", 0, keys=KEYS, accuracy=97.0)
    assert export(run, tmp_path / "s.yaml", client.tracking_uri).evidence is None


def test_an_unknown_run_names_recent_ones(client: MlflowClient, write: Callable[..., str]) -> None:
    run = write("run", 0, accuracy=97.0)
    with pytest.raises(UserError, match=f"no such run .*expected one of:\n  {run[:8]}"):
        find(client, "zzz")
    with pytest.raises(UserError, match=r"several runs|no such run"):
        find(client, "")
    assert find(client, run).run_id == run
