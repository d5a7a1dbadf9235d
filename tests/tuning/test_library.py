"""Baselines of earlier sweeps: borrowed where everything agrees, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_plan import loaded, metrics, run_through

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tracking.tracker import Tracker
from raytrain_speedup.tuning import library
from raytrain_speedup.tuning.library import REUSED, BaselineLibrary
from raytrain_speedup.tuning.parent import new_parent, parameters
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.planned import baseline_run
from raytrain_speedup.tuning.space import Sweep, load_sweep

WORDS = {"train_key": "t", "data_fingerprint": "d", "setup": "s", "hardware": "h"}


def kept(tracker: Tracker, sweep: Sweep, seed: int, **changes: Any) -> str:
    """A baseline of an earlier sweep; gives its run's id."""
    run = baseline_run(sweep, seed)
    log = RunLog.start(
        tracker,
        run.experiment,
        name=run.name,
        into="earlier",
        role="baseline",
        parent=new_parent(tracker, sweep),
    )
    log.finish(FinalMetrics.from_dict({**metrics(run.name), **WORDS, "epochs": 3.0, **changes}))
    return log.run_id


def planned(tracker: Tracker, sweep: Sweep) -> tuple[SweepPlan, str]:
    parent = new_parent(tracker, sweep)
    borrowing = BaselineLibrary(tracker, parent, into=sweep.tracked_as, margin=0.5)
    return SweepPlan(sweep, library=borrowing), parent


def names_of(plan: SweepPlan) -> list[str]:
    """Run it through, every run like the kept ones."""
    names = []
    while isinstance(config := plan.suggest("x"), dict):
        names.append(config["run_name"])
        plan.on_trial_complete("x", {**metrics(names[-1]), **WORDS, "epochs": 3.0})
    return names


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same commit for every run, whatever state this tree is in."""
    code = {store.COMMIT: "c0ffee", store.PACKAGE: "1"}
    monkeypatch.setattr(library, "provenance", lambda: code)
    monkeypatch.setattr("raytrain_speedup.tracking.run_log.provenance", lambda: code)


def test_what_ran_already_does_not_run_again(tmp_path: Path, clean: None) -> None:
    tracker, sweep = open_tracker(f"json:{tmp_path / 'runs'}"), loaded(tmp_path, controls={})
    expected = run_through(SweepPlan(sweep))
    run_id = kept(tracker, sweep, seed=1)
    plan, parent = planned(tracker, sweep)
    assert names_of(plan) == [name for name in expected if name != "baseline-seed1"] and plan.done
    assert plan.finished["baseline-seed1"].report["accuracy"] == metrics("baseline-seed1")["accuracy"]
    copies = store.records(tracker, parent=parent)
    assert [(run.name, run.state) for run in copies] == [("baseline-seed1", "finished")]
    assert tracker.run(copies[0].run_id).tags[REUSED] == run_id
    again, _ = planned(tracker, sweep)
    names_of(again)
    lent = [entry.tags[REUSED] for entry in tracker.runs(tag=REUSED)]
    assert lent == [run_id, run_id], "a copy is not copied"


@pytest.mark.parametrize(
    "changes",
    [{"data_fingerprint": "other"}, {"hardware": "other"}, {"train_key": "other"}, {"epochs": 4.0}],
    ids=str,
)
def test_what_differs_is_not_borrowed(changes: dict[str, Any], tmp_path: Path, clean: None) -> None:
    tracker, sweep = open_tracker(f"json:{tmp_path / 'runs'}"), loaded(tmp_path)
    kept(tracker, sweep, seed=1, **changes)
    assert "baseline-seed1" in names_of(planned(tracker, sweep)[0])


def test_other_code_and_uncommitted_code_borrow_nothing(
    tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, sweep = open_tracker(f"json:{tmp_path / 'runs'}"), loaded(tmp_path)
    kept(tracker, sweep, seed=1)
    monkeypatch.setattr(library, "provenance", lambda: {store.COMMIT: "decaf", store.PACKAGE: "1"})
    assert "baseline-seed1" in names_of(planned(tracker, sweep)[0])
    dirty = {store.COMMIT: "c0ffee-dirty", store.PACKAGE: "1"}
    monkeypatch.setattr("raytrain_speedup.tracking.run_log.provenance", lambda: dirty)
    kept(tracker, sweep, seed=2)
    monkeypatch.setattr(library, "provenance", lambda: dirty)
    assert "baseline-seed2" in names_of(planned(tracker, sweep)[0])


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml")), ids=lambda file: file.stem
)
def test_mlflow_takes_the_parameters_of_every_search_space(file: Path) -> None:
    """Names and lengths that its store refuses are found by it alone."""
    from mlflow.utils.validation import _validate_param

    for key, value in parameters(load_sweep(file).settings).items():
        _validate_param(key, value)
