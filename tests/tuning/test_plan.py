"""In which order a sweep runs, now and when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.space import Sweep, load_sweep

SPACE = {
    "name": "s",
    "experiment": "digits",
    "trial": {"pruning.method": "infobatch"},
    "search": {"pruning.prune_ratio": {"type": "float", "low": 0.1, "high": 0.9}},
    "controls": {"random": {"pruning.method": "random"}},
    "trials": 4,
    "confirm": 1,
}


def loaded(folder: Path, **changes: Any) -> Sweep:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**SPACE, **changes}))
    return load_sweep(file)


def figures(name: str) -> dict[str, Any]:
    """The second trial is the only one as good as the baseline, if that is as good as in its first seeds."""
    good = {"trial-02": 98.0, "baseline-seed2": 50.0}.get(name, 90.0 if name.startswith("trial") else 98.0)
    return {"val_accuracy": good, "train_flops": 1.0, "baseline_key": "k"}


def run_through(plan: SweepPlan, *, limit: int | None = None) -> list[str]:
    """The names of the runs, one after another; only the first `limit` of them."""
    names: list[str] = []
    while limit is None or len(names) < limit:
        config = plan.suggest(f"t{len(names)}")
        if not isinstance(config, dict):
            break
        names.append(config["run_name"])
        plan.on_trial_complete(f"t{len(names) - 1}", figures(names[-1]))
    return names


def records(plan: SweepPlan, names: Sequence[str]) -> list[Record]:
    """The runs as MLflow gives them back."""
    known: dict[str, Any] = {"state": "finished", "method": "", "settings": "", "seed": 0, "started": 0}
    return [
        Record(
            run_id=name, name=name, role=plan.finished[name].role, group=plan.finished[name].group,
            experiment="s", figures=plan.finished[name].figures, params=plan.finished[name].params, **known,
        )
        for name in names
    ]  # fmt: skip


WHOLE = [
    *("baseline-seed0", "random-seed0", "trial-01", "trial-02"),
    *("baseline-seed1", "random-seed1", "trial-03", "trial-04"),
    *("trial-02-seed0", "trial-02-seed1"),
    *("baseline-seed2", "random-seed2", "trial-02-seed2"),
]


def test_the_baseline_is_spread_over_the_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    assert run_through(plan) == WHOLE
    assert plan.done and plan.total == len(WHOLE)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("confirm", [0, 1])
def test_everything_runs_whatever_the_number_of_seeds(seeds: int, confirm: int, tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path, seeds=list(range(seeds)), confirm=confirm))
    names = run_through(plan)
    assert names[0] == "baseline-seed0"
    assert len(set(names)) == len(names) == plan.total == 4 + seeds * (2 + confirm)
    assert plan.done


def test_runs_under_way_are_waited_for_only_where_they_decide_the_winner(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path, controls={}, trials=2))
    begun = {config["run_name"]: slot for slot in "abcd" if isinstance(config := plan.suggest(slot), dict)}
    assert list(begun) == ["baseline-seed0", "trial-01", "baseline-seed1", "trial-02"]
    for name in ("trial-01", "trial-02", "baseline-seed0"):
        assert plan.suggest("e") is None
        plan.on_trial_complete(begun[name], figures(name))
    assert plan.suggest("e") is None, "the baseline's level is not known"
    plan.on_trial_complete(begun["baseline-seed1"], figures("baseline-seed1"))
    assert plan.suggest("e")["run_name"] == "trial-02-seed0"


def test_a_baseline_that_fails_late_costs_a_seed_and_not_the_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    run_through(plan, limit=4)
    assert plan.suggest("late")["run_name"] == "baseline-seed1"
    plan.on_trial_complete("late", {"error": "a lost disk"})
    assert plan.failure is None
    assert run_through(plan) == [name for name in WHOLE[4:] if name != "baseline-seed1"]
    assert plan.done


def test_a_baseline_without_the_figure_that_is_searched_for_ends_the_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    plan.suggest("first")
    plan.on_trial_complete("first", {"train_flops": 1.0, "baseline_key": "k"})
    assert plan.failure is not None and plan.failure.startswith(
        "it has no figure 'val_accuracy'; expected data"
    )
    assert plan.suggest("second") == SweepPlan.FINISHED


@pytest.mark.parametrize("ended", range(len(WHOLE) + 1))
def test_a_resumed_sweep_runs_what_is_left(ended: int, tmp_path: Path) -> None:
    sweep = loaded(tmp_path)
    first = SweepPlan(sweep)
    names = run_through(first, limit=ended)
    resumed = SweepPlan(sweep, records(first, names))
    assert names + run_through(resumed) == WHOLE
    assert resumed.done


def test_more_seeds_are_for_the_winner_there_was(tmp_path: Path) -> None:
    """With its third seed the baseline is so much worse that another trial would win now."""
    first = SweepPlan(loaded(tmp_path))
    run_through(first)
    more = SweepPlan(loaded(tmp_path, seeds=[0, 1, 2, 3]), records(first, WHOLE))
    assert run_through(more) == ["baseline-seed3", "random-seed3", "trial-02-seed3"]
    assert more.done
    second_winner = SweepPlan(loaded(tmp_path, confirm=2), records(first, WHOLE))
    assert run_through(second_winner) == [f"trial-01-seed{seed}" for seed in (0, 1, 2)]
