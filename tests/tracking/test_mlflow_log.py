"""What is written into MLflow is what is read back from it."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from raytrain_speedup.config import load_experiment
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.mlflow_log import RunLog

PARAMS = {"pruning.prune_ratio": 0.1 + 0.2, "train.lr": 1e-05}
FINAL = {"accuracy": 97.25, "val_accuracy": 1 / 3, "train_flops": 123456789012345678.0, "train_seconds": 0.1}
WORDS = {"baseline_key": "k", "train_key": "t", "hardware": "a desk", "metric": "accuracy"}


def test_a_run_of_a_sweep_is_read_back_as_it_was(client: MlflowClient, experiment_name: str) -> None:
    """Every metric to the last bit: a resumed search must learn from the very numbers."""
    into = store.experiment_id(client, experiment_name)
    parent, other = (client.create_run(into).info.run_id for _ in range(2))
    experiment = load_experiment("digits", {"pruning.method": "infobatch", "train.seed": 7})
    told = {"name": "trial-01", "into": into, "role": "trial", "params": PARAMS, "margin": 0.2}
    log = RunLog.start(client, experiment, parent=parent, folder="trial-01-a", **told)  # type: ignore[arg-type]
    RunLog.start(client, experiment, parent=other, folder="trial-01-b", **told)  # type: ignore[arg-type]
    assert [run.state for run in store.records(client, experiment_name, parent=parent)] == ["running"]
    log.epoch({"epoch": 1, "val_accuracy": 50.0})
    log.finish({**FINAL, **WORDS, "done": True})
    (run,) = store.records(client, experiment_name, parent=parent)
    assert (run.role, run.state, run.seed, run.method) == ("trial", "finished", 7, "infobatch")
    assert (run.parent, run.margin, run.folder, run.params) == (parent, 0.2, "trial-01-a", PARAMS)
    assert run.metrics == {**FINAL, **WORDS} and "prune_ratio=0.3" in run.settings
    assert client.get_run(run.run_id).data.metrics["epoch/val_accuracy"] == 50.0


def test_a_reopened_run_goes_on_behind_its_last_epoch(client: MlflowClient, experiment_name: str) -> None:
    into = store.experiment_id(client, experiment_name)
    log = RunLog.start(client, load_experiment("digits"), name="r", into=into)
    for epoch in (1, 2):
        log.epoch({"epoch": epoch, "train_loss": 1.0})
    log.end("interrupted", "Ctrl-C")
    assert store.records(client, experiment_name)[0].state == "interrupted"
    again = RunLog.reopen(client, log.run_id)
    assert store.records(client, experiment_name)[0].state == "running"
    assert client.get_run(log.run_id).info.status == "RUNNING"
    for epoch in (2, 3):
        again.epoch({"epoch": epoch, "train_loss": 1.0})
    steps = [point.step for point in client.get_metric_history(log.run_id, "epoch/train_loss")]
    assert steps == [1, 2, 3]
