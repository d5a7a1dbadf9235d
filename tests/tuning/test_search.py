"""What Optuna is told, what it learns from it, and what it asks for after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from test_plan import loaded

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.search import Ending, Search
from raytrain_speedup.tuning.space import Sweep

RATIO, LR, BATCH = "pruning.prune_ratio", "train.lr", "train.batch_size"
TWO_KEYS = {
    RATIO: {"type": "float", "low": 0.1, "high": 0.9},
    LR: {"type": "float", "low": 0.01, "high": 1.0, "log": True},
}
REFUSED_TOGETHER = {  # each end of each range is allowed beside the others' first values
    RATIO: {"type": "float", "low": 0.1, "high": 0.9},
    BATCH: {"type": "categorical", "choices": [64, 65]},
    "train.accumulate": {"type": "categorical", "choices": [1, 2]},
}


def asked(folder: Path, search: dict[str, Any] = TWO_KEYS, **changes: Any) -> Sweep:
    return loaded(folder, **{"search": search, "confirm": 0, "seeds": [0], "controls": {}} | changes)


def metrics(params: dict[str, Any]) -> dict[str, Any]:
    """As good as the ratio is near 0.3, as dear as it is small."""
    ratio = params.get(RATIO, 0.0)
    good = 90 - 10 * abs(ratio - 0.3) - params.get(LR, 0.0)
    known = {"accuracy": good, "progress": 1.0, "passes_saved": 0.0, "wall_seconds": 2.0, "baseline_key": "k"}
    known |= {"final": True}
    return {"val_accuracy": good, "train_flops": 1e9 * (1 - ratio / 2), **known}


def run(plan: SweepPlan, *, limit: int | None = None, infeasible: float = 1.0) -> list[Record]:
    """Run trials one at a time; the one over the limit is under way when the sweep is interrupted."""
    done: list[Record] = []
    while isinstance(config := plan.suggest(slot := f"t{len(done)}"), dict):
        known = {
            "method": "",
            "settings": "",
            "seed": 0,
            "group": "",
            "started": len(done),
            "experiment": "s",
        }
        name, role, params = config["run_name"], config["role"], config["params"]
        if limit is not None and len(done) == limit:
            return [
                *done,
                Record("r", name, role, "interrupted", params=params, folder=config["folder"], **known),
            ]
        if params.get(RATIO, 0.0) > infeasible:
            plan.on_trial_complete(slot, {"error": "CUDA out of memory", "done": True})
            done.append(Record("r", name, role, "failed", params=params, **known))
        else:
            plan.on_trial_complete(slot, metrics(params))
            final = FinalMetrics.from_dict(metrics(params))
            done.append(Record("r", name, role, "finished", params=params, metrics=final, **known))
    return done


def points(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    return {record.name: dict(record.params) for record in records if record.role == "trial"}


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_can_be_run_little_is_tried(seed: int, tmp_path: Path) -> None:
    """Half of the space needs too much memory. Told FAIL, TPE tried 18 to 20 of the last 20 there."""
    sweep = asked(tmp_path, trials=40, seed=seed, budget={})
    tried = points(run(SweepPlan(sweep), infeasible=0.5))
    assert len(tried) == 40
    assert sum(params[RATIO] > 0.5 for params in list(tried.values())[-20:]) <= 7


def test_refused_settings_are_learnt_too_and_take_part_in_the_count(tmp_path: Path) -> None:
    plan = SweepPlan(asked(tmp_path, REFUSED_TOGETHER, trials=40, budget={}))
    tried = points(run(plan))
    assert len(tried) + len(plan.refused) == 40 and "batch_size: 65 does not split" in plan.refused[0]
    assert int(max(tried).rpartition("-")[2]) > len(tried), "a refused suggestion has its number"
    told = plan._search.study.trials
    assert sum(bool(trial.constraints) for trial in told) == len(plan.refused) > 0


def test_what_optuna_is_reported(tmp_path: Path) -> None:
    """Only a spent budget is complete; only what could not be run is infeasible."""
    search = Search(asked(tmp_path))
    endings = [
        ("finished", metrics({RATIO: 0.5})),
        ("stopped", {"val_accuracy": 99.0, "train_flops": 1.0}),
        ("stopped", metrics({RATIO: 0.5})),
        ("failed", None),
        ("finished", metrics({RATIO: 0.5}) | {"val_accuracy": float("nan")}),
    ]
    for state, final in endings:
        search.tell(search.suggest(), Ending(state, final or {}))
    told = search.study.trials
    assert [trial.state for trial in told] == [TrialState.COMPLETE] + [TrialState.PRUNED] * 4
    assert [sum(trial.constraints.values()) > 0 for trial in told] == [False, False, False, True, True]
    assert told[0].values == [88.0, 0.75e9] and search.told == 5
    directions = [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert search.study.directions == directions, "accuracy up, FLOPs down"


def test_the_plan_says_how_a_trial_came_back(tmp_path: Path) -> None:
    plan = SweepPlan(asked(tmp_path, trials=4))
    begun = {slot: plan.suggest(slot) for slot in "012345"}
    done, stopped, failed, lost = (slot for slot, config in begun.items() if config["role"] == "trial")
    plan.on_trial_complete(done, metrics({}))
    plan.on_trial_complete(stopped, {"val_accuracy": 99.0, "progress": 0.25})
    plan.on_trial_complete(failed, {"error": "CUDA out of memory"})
    plan.on_trial_complete(lost, error=True)
    told = plan._search.study.trials
    assert [trial.state for trial in told] == [TrialState.COMPLETE] + [TrialState.PRUNED] * 3
    assert [bool(trial.constraints) for trial in told] == [False, False, True, True]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "frontier"])
@pytest.mark.parametrize("limit", [1, 3, 8, 15])
def test_a_resumed_search_draws_the_points_of_an_undisturbed_one(
    limit: int, sampler: str, tmp_path: Path
) -> None:
    """Fixed points, infeasible ones and those of the sampler, whatever the moment of the interruption."""
    fixed = [{RATIO: 0.4, LR: 0.1}, {RATIO: 0.6}, {RATIO: 0.2}]
    objective = "cheapest-lossless" if sampler == "frontier" else "pareto"
    settings = {"sampler": sampler, "objective": objective, "points_to_evaluate": fixed}
    sweep = asked(tmp_path, trials=18, budget={}, **settings)
    whole = points(run(SweepPlan(sweep), infeasible=0.7))
    assert [params[RATIO] for params in list(whole.values())[:3]] == [0.4, 0.6, 0.2]
    if sampler != "nsga2":  # a child may have its parent's
        ratios = {params[RATIO] for params in whole.values()}
        assert len(ratios) == 18, "every suggestion has its own seed"
    before = run(SweepPlan(sweep), limit=limit, infeasible=0.7)
    after = run(SweepPlan(sweep, before), infeasible=0.7)
    assert before[-1].name == after[0].name and before[-1].params == after[0].params
    assert points(before) | points(after) == whole


@pytest.mark.parametrize("limit", [2, 7, 14])
def test_refused_points_leave_no_record_and_are_not_forgotten(limit: int, tmp_path: Path) -> None:
    sweep = asked(tmp_path, REFUSED_TOGETHER, trials=18)
    undisturbed = SweepPlan(sweep)
    whole = points(run(undisturbed))
    assert undisturbed.refused
    before = run(SweepPlan(sweep), limit=limit)
    resumed = SweepPlan(sweep, before)
    after = run(resumed)
    assert points(before) | points(after) == whole
    assert resumed.refused == undisturbed.refused


def test_another_seed_searches_elsewhere(tmp_path: Path) -> None:
    first, other = (run(SweepPlan(asked(tmp_path, trials=3, seed=seed))) for seed in (0, 1))
    assert points(first).keys() == points(other).keys() and points(first) != points(other)


def test_an_interrupted_run_goes_on_in_its_folder_and_no_other_run_does(tmp_path: Path) -> None:
    sweep = asked(tmp_path, trials=4)
    before = run(SweepPlan(sweep), limit=2)
    again = SweepPlan(sweep, before)
    first, second = again.suggest("other-sitting-1"), again.suggest("other-sitting-2")
    assert (
        (first["run_name"], first["folder"]) == ("trial-02", before[-1].folder) == ("trial-02", "trial-02-t2")
    )
    assert second["folder"] == f"{second['run_name']}-other-sitting-2"
