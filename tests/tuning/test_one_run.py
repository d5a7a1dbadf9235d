"""The question that `speedup confirm` asks of a single run: which baseline, and which margin."""

from __future__ import annotations

import pytest

from raytrain_speedup.config import load_experiment
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.export import find
from raytrain_speedup.tracking.mlflow_log import RunLog
from raytrain_speedup.tuning.sweep import _of_one_run, confirm

BASELINE = {"pruning.method": "none", "train.lr": 0.05}


def write(uri: str, *, parent: str | None = None, margin: float | None = None) -> store.Record:
    """A finished run of InfoBatch, in MLflow."""
    client = store.connect(uri)
    into = store.experiment_id(client, "one-run")
    experiment = load_experiment("digits", {"pruning.method": "infobatch", "pruning.prune_ratio": 0.4})
    log = RunLog.start(client, experiment, name="mine", into=into, parent=parent, margin=margin)
    log.finish({"accuracy": 97.0, "baseline_key": "k", "hardware": "a desk"})
    return find(client, log.run_id)


def new_sweep(uri: str, name: str) -> str:
    client = store.connect(uri)
    tags = {store.SWEEP: "a key", "mlflow.runName": name}
    return str(client.create_run(store.experiment_id(client, "one-run"), tags=tags).info.run_id)


def test_a_run_of_a_sweep_keeps_its_baseline_and_margin(uri: str) -> None:
    client, parent = store.connect(uri), new_sweep(uri, "asked")
    asked = {"name": "asked", "experiment": "digits", "trials": 0, "baseline": BASELINE}
    client.log_dict(parent, asked, "search_space.yaml")
    client.log_text(parent, load_experiment("digits").to_yaml(), "experiment.yaml")
    record = write(uri, parent=parent, margin=0.3)
    sweep, winner = _of_one_run(client, record, None)
    assert sweep.settings.baseline == BASELINE and sweep.settings.margin == 0.3
    assert sweep.trial(winner.params, 5).pruning.prune_ratio == 0.4  # type: ignore[attr-defined]
    assert _of_one_run(client, record, 1.0)[0].settings.margin == 1.0


def test_a_run_of_its_own_is_compared_with_no_method(uri: str) -> None:
    sweep, _ = _of_one_run(store.connect(uri), write(uri), None)
    assert sweep.experiment(sweep.settings.baseline, 0).pruning.method == "none"
    assert sweep.settings.margin == 0.5 and sweep.settings.trials == 0


def test_a_sweep_has_a_margin_of_its_own(uri: str) -> None:
    new_sweep(uri, "with-a-margin")
    with pytest.raises(
        UserError, match=r"^--margin: 1 cannot be another than the sweep's; expected none here$"
    ):
        confirm("with-a-margin", margin=1.0, tracking_uri=uri)
