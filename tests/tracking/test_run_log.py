"""What is written down is what is read back from it."""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tracking import provenance as provenance_module
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.provenance import provenance
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tracking.tracker import Tracker

PARAMS = {"pruning.prune_ratio": 0.1 + 0.2, "train.lr": 1e-05}
FINAL = {"accuracy": 97.25, "val_accuracy": 1 / 3, "train_flops": 123456789012345678.0, "train_seconds": 0.1}
FINAL |= {"passes_saved": 0.25, "epochs": 3.5, "workers_min": 1, "workers_max": 2}
WORDS = {"baseline_key": "k", "train_key": "t", "hardware": "a desk", "metric": "accuracy"}


def test_a_run_of_a_sweep_is_read_back_as_it_was(tracker: Tracker, experiment_name: str) -> None:
    """Every metric to the last bit: a resumed search must learn from the very numbers."""
    parent, other = (tracker.start(experiment_name, "a sweep", {}) for _ in range(2))
    experiment = load_experiment("digits", {"pruning.method": "infobatch", "train.seed": 7})
    told = {"name": "trial-01", "into": experiment_name, "role": "trial", "params": PARAMS, "margin": 0.2}
    log = RunLog.start(tracker, experiment, parent=parent, folder="trial-01-a", **told)  # type: ignore[arg-type]
    RunLog.start(tracker, experiment, parent=other, folder="trial-01-b", **told)  # type: ignore[arg-type]
    assert [run.state for run in store.records(tracker, experiment_name, parent=parent)] == ["running"]
    log.epoch({"epoch": 1, "val_accuracy": 50.0})
    told = FinalMetrics.from_dict({**FINAL, **WORDS, "seed": 7})
    log.finish(told)
    (run,) = store.records(tracker, experiment_name, parent=parent)
    assert (run.role, run.state, run.seed, run.method) == ("trial", "finished", 7, "infobatch")
    assert (run.parent, run.margin, run.folder, run.params) == (parent, 0.2, "trial-01-a", PARAMS)
    assert run.final == told and "prune_ratio=0.3" in run.settings
    assert tracker.curve(run.run_id, "epoch/val_accuracy") == [(1, 50.0)]


def test_a_reopened_run_goes_on_behind_its_last_epoch(tracker: Tracker, experiment_name: str) -> None:
    experiment = load_experiment("digits")
    log = RunLog.start(tracker, experiment, name="r", into=experiment_name)
    for epoch in (1, 2):
        log.epoch({"epoch": epoch, "train_loss": 1.0})
    log.end("interrupted", "Ctrl-C")
    assert store.records(tracker, experiment_name)[0].state == "interrupted"
    again = RunLog.reopen(tracker, log.run_id, experiment)
    assert store.records(tracker, experiment_name)[0].state == "running"
    assert MlflowClient(tracker.uri).get_run(log.run_id).info.status == "RUNNING"
    for epoch in (2, 3):
        again.epoch({"epoch": epoch, "train_loss": 1.0})
    assert [step for step, _ in tracker.curve(log.run_id, "epoch/train_loss")] == [1, 2, 3]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as a repository of one commit: this package's own may be an unpacked archive."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "x").write_text("1")
    who = "-c user.name=x -c user.email=x@x"
    subprocess.run(f"git init -q && git add x && git {who} commit -qm x", shell=True, check=True)
    return tmp_path


def test_mlflow_alone_says_where_a_run_comes_from(
    tracker: Tracker, experiment_name: str, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    """Kind of experiment, source, user, commit, version and data set, where MLflow's own pages look for them."""
    shown = "speedup sweep a.yaml --tracking-uri http://host:5000"
    monkeypatch.setattr(sys, "argv", ["/bin/speedup", *shown.replace("//", "//me:secret@").split()[1:]])
    experiment = load_experiment("digits", {"pruning.method": "infobatch"})
    log = RunLog.start(tracker, experiment, name="r", into=experiment_name, role="winner")
    log.finish(FinalMetrics.from_dict({"accuracy": 97.0, "data_fingerprint": "f" * 64}))
    client = MlflowClient(tracker.uri)
    run = client.get_run(log.run_id)
    tags = run.data.tags
    assert tags["mlflow.source.name"] == tags["speedup.command"] == shown, "without the password"
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert tags["mlflow.source.git.commit"] == tags["speedup.commit"] == head
    assert tags["mlflow.user"] == tags["speedup.user"] == getpass.getuser()
    assert tags["speedup.package_version"] and tags["mlflow.runName"] == "r"
    assert (tags["speedup.method"], tags["speedup.role"], tags["speedup.data"]) == (
        "infobatch",
        "winner",
        "digits",
    )
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "f" * 36)
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    kept = client.get_experiment(run.info.experiment_id).tags
    assert kept["mlflow.experimentKind"] == "custom_model_development"
    assert "raytrain_speedup" in kept["mlflow.note.content"]


def test_a_folder_without_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert store.COMMIT not in provenance()


def test_a_changed_file_makes_a_commit_dirty(repository: Path) -> None:
    clean = provenance()[store.COMMIT]
    assert len(clean) == 40
    (repository / "x").write_text("2")
    provenance_module._commit.cache_clear()
    assert provenance()[store.COMMIT] == f"{clean}-dirty"
