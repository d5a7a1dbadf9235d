"""The question that `speedup confirm` asks of a single run: which baseline, and which margin."""

from __future__ import annotations

import pytest
import yaml

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.export import find
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tuning.parent import SPACE_FILE
from raytrain_speedup.tuning.sweep import _of_one_run, confirm

BASELINE = {"pruning.method": "none", "train.lr": 0.05}


def write(uri: str, *, parent: str | None = None, margin: float | None = None) -> store.Record:
    """A finished run of InfoBatch, in MLflow."""
    tracker = open_tracker(uri)
    experiment = load_experiment("digits", {"pruning.method": "infobatch", "pruning.prune_ratio": 0.4})
    log = RunLog.start(tracker, experiment, name="mine", into="one-run", parent=parent, margin=margin)
    log.finish(FinalMetrics.from_dict({"accuracy": 97.0, "baseline_key": "k", "hardware": "a desk"}))
    return find(tracker, log.run_id)


def new_sweep(uri: str, name: str) -> str:
    return open_tracker(uri).start("one-run", name, {store.SWEEP: "a key"})


def test_a_run_of_a_sweep_keeps_its_baseline_and_margin(uri: str) -> None:
    tracker, parent = open_tracker(uri), new_sweep(uri, "asked")
    asked = {"name": "asked", "experiment": "digits", "trials": 0, "baseline": BASELINE}
    tracker.log_text(parent, yaml.safe_dump(asked), SPACE_FILE)
    tracker.log_text(parent, load_experiment("digits").to_yaml(), "experiment.yaml")
    record = write(uri, parent=parent, margin=0.3)
    sweep, winner = _of_one_run(tracker, record, None)
    assert sweep.settings.baseline == BASELINE and sweep.settings.margin == 0.3
    assert sweep.trial(winner.params, 5).pruning.prune_ratio == 0.4  # type: ignore[attr-defined]
    assert _of_one_run(tracker, record, 1.0)[0].settings.margin == 1.0


def test_a_run_of_its_own_is_compared_with_no_method(uri: str) -> None:
    sweep, _ = _of_one_run(open_tracker(uri), write(uri), None)
    assert sweep.experiment(sweep.settings.baseline, 0).pruning.method == "none"
    assert sweep.settings.margin == 0.5 and sweep.settings.trials == 0


def test_a_sweep_has_a_margin_of_its_own(uri: str) -> None:
    new_sweep(uri, "with-a-margin")
    with pytest.raises(
        UserError, match=r"^--margin: 1 cannot be another than the sweep's; expected none here$"
    ):
        confirm("with-a-margin", margin=1.0, tracking_uri=uri)
