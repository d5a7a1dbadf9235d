"""A sweep as an Optuna study: read back by Optuna alone."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from written_sweep import NASTY, RATIOS, Written

from raytrain_speedup import cli
from raytrain_speedup.tracking import store
from raytrain_speedup.tuning.study import importances


@pytest.fixture(scope="module")
def file(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported by the command."""
    out = tmp_path_factory.mktemp("study") / "study.db"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        words = ["study", "export", "written", "-o", str(out), "--tracking-uri", written.tracker.uri]
        patch.setattr(sys, "argv", ["speedup", *words])
        cli.main()
    assert not end.value.code
    return out


def test_optuna_reads_it(file: Path, written: Written) -> None:
    study = optuna.load_study(study_name="written", storage=f"sqlite:///{file}")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["val_accuracy", "train_flops"]
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.FAIL], "in their order"
    assert [trial.params["pruning.prune_ratio"] for trial in study.trials[:5]] == list(RATIOS)
    third = study.trials[2]
    assert third.values == pytest.approx([97.0, 5e9])
    assert third.intermediate_values == pytest.approx({1: 88.0, 2: 97.0})
    assert third.distributions["pruning.prune_ratio"] == optuna.distributions.FloatDistribution(0.1, 0.9)
    assert third.datetime_complete - third.datetime_start == timedelta(seconds=6)  # type: ignore[operator]
    assert third.user_attrs["run"] == written.runs["trial-03"] and third.user_attrs["hardware"] == "a desk"
    other = study.trials[4]
    assert other.user_attrs["speedup"] == pytest.approx(5.0)
    assert other.user_attrs["difference"] == pytest.approx(94.0 - 97.12)
    stopped, failed = study.trials[5:]
    assert stopped.user_attrs["reason"] == "behind the others at 25%"
    assert stopped.intermediate_values == {1: 60.0}
    assert failed.user_attrs["reason"] == NASTY and failed.values is None
    assert study.user_attrs["about"] == NASTY and study.user_attrs["margin"] == 1.0
    assert study.user_attrs["verdicts"] == {
        "infobatch anneal_from=0.55 prune_ratio=0.5": "lossless",
        "random saving=0.3": "lossy",
    }
    front = {trial.params["pruning.prune_ratio"] for trial in study.best_trials}
    assert front == {0.5, 0.6, 0.8}, "stopped and failed ones are not on it"


def test_nobodys_file_is_overwritten(
    file: Path, written: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    for target, message in (("written", "is there already"), ("no-such", "no-such: no such sweep")):
        words = ["study", "export", target, "-o", str(file), "--tracking-uri", written.tracker.uri]
        monkeypatch.setattr(sys, "argv", ["speedup", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert file.read_bytes() == before


def test_importances(written: Written) -> None:
    """Of each objective; of three trials nothing is said."""
    records = store.records(written.tracker, "written", parent=written.parent)
    found = importances(written.sweep, records)
    assert set(found) == {"val_accuracy", "train_flops"}
    assert found["val_accuracy"] != found["train_flops"], "of each objective its own"
    assert all(sum(one.values()) == pytest.approx(1.0) for one in found.values())
    assert importances(written.sweep, [one for one in records if one.name < "trial-04"]) == {}
