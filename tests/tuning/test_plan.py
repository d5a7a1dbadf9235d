"""In which order a sweep runs, now and when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.statistics.verdict import plan_for, settle
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.confirmation import Confirmation, confirmation_plan
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.space import Sweep, load_sweep
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED
from raytrain_speedup.tuning.winners import Outcome

SPACE = {
    "name": "s",
    "experiment": "digits",
    "trial": {"pruning.method": "infobatch"},
    "search": {"pruning.prune_ratio": {"type": "float", "low": 0.1, "high": 0.9}},
    "controls": {"random": {"pruning.method": "random"}},
    "trials": 4,
    "objective": "pareto",
    "confirm": {"winners": 1, "until": "seeds"},
}


def loaded(folder: Path, **changes: Any) -> Sweep:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**SPACE, **changes}))
    return load_sweep(file)


def metrics(name: str) -> dict[str, Any]:
    """The second trial is the only one that reaches the baseline. On the test split it is as good."""
    good = 98.0 if name.startswith("trial-02") or not name.startswith("trial") else 90.0
    noise = 0.1 * (int(name.rpartition("seed")[2]) % 3) if "seed" in name else 0.0
    known = {"val_accuracy": good, "accuracy": good + noise, "train_flops": 1.0, "baseline_key": "k"}
    known |= {"final": True, "seed": int(name.rpartition("seed")[2]) if "seed" in name else SEARCH_SEED}
    return known | {"progress": 1.0, "passes_saved": 0.0, "wall_seconds": 2.0}


@pytest.mark.parametrize("margin", [97.9, 98.5])
def test_a_margin_that_allows_any_setting_is_told(margin: float, tmp_path: Path) -> None:
    said: list[str] = []
    plan = SweepPlan(loaded(tmp_path, margin=margin), say=said.append)
    run_through(plan)
    told = [line for line in said if line.startswith("margin: 98.5 allows any setting")]
    assert len(told) == (margin == 98.5)
    assert all(
        "for the baseline's val_accuracy is 98; expected a part of that (--margin)" in line for line in told
    )


def run_through(plan: SweepPlan, *, limit: int | None = None) -> list[str]:
    """The names of the runs, one after another; only the first `limit` of them."""
    names: list[str] = []
    while limit is None or len(names) < limit:
        config = plan.suggest(f"t{len(names)}")
        if not isinstance(config, dict):
            break
        names.append(config["run_name"])
        plan.on_trial_complete(f"t{len(names) - 1}", metrics(names[-1]))
    return names


def records(plan: SweepPlan, names: Sequence[str]) -> list[Record]:
    """The runs as MLflow gives them back."""
    known: dict[str, Any] = {"state": "finished", "method": "", "settings": "", "seed": 0, "started": 0}
    return [
        Record(
            run_id=name, name=name, role=plan.finished[name].role, group=plan.finished[name].group,
            experiment="s", metrics=plan.finished[name].metrics, params=plan.finished[name].params, **known,
        )
        for name in names
    ]  # fmt: skip


SEARCH = ["baseline-seed1000003", "trial-01", "trial-02", "baseline-seed1000004", "trial-03", "trial-04"]
WHOLE = [
    *SEARCH,
    *("baseline-seed0", "trial-02-seed0", "random-seed0"),
    *("trial-02-seed1", "baseline-seed1", "random-seed1"),
    *("baseline-seed2", "trial-02-seed2", "random-seed2"),
]


def test_baseline_and_winner_run_back_to_back_in_turning_order(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    assert run_through(plan) == WHOLE
    assert plan.done and plan.total == len(WHOLE)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("winners", [0, 1])
def test_everything_runs_whatever_the_number_of_seeds(seeds: int, winners: int, tmp_path: Path) -> None:
    confirm = {"winners": winners, "until": "seeds"}
    plan = SweepPlan(loaded(tmp_path, seeds=list(range(seeds)), confirm=confirm))
    names = run_through(plan)
    assert len(set(names)) == len(names) == plan.total == 2 + 4 + seeds * (2 + winners)
    assert plan.done


def test_the_search_has_as_many_baselines_as_were_asked_for(tmp_path: Path) -> None:
    spread = run_through(SweepPlan(loaded(tmp_path, baselines=4)), limit=8)
    assert [name.startswith("baseline") for name in spread] == [True, False] * 4, (
        "one for every trial of four"
    )
    plan = SweepPlan(loaded(tmp_path, baselines=3, objective="cheapest-lossless"))
    first = run_through(plan, limit=2)
    assert first == ["baseline-seed1000003", "baseline-seed1000004"] and plan.monitor.level is None
    resumed = SweepPlan(loaded(tmp_path, baselines=3, objective="cheapest-lossless"), records(plan, first))
    assert run_through(resumed, limit=2) == ["baseline-seed1000005", "trial-01"]
    assert resumed.monitor.level is not None and resumed.monitor.level.seeds == 3
    assert resumed.total == SweepPlan(loaded(tmp_path, objective="cheapest-lossless")).total + 1


def test_it_goes_on_until_a_verdict_and_says_what_it_finds(tmp_path: Path) -> None:
    said: list[str] = []
    plan = SweepPlan(loaded(tmp_path, margin=0.22, confirm={"winners": 1, "max_seeds": 9}), say=said.append)
    names = run_through(plan)
    assert plan.confirmation is not None and plan.confirmation.plan is not None
    seeds = len([name for name in names if name.startswith("trial-02-seed")])
    assert 3 < seeds < 9 and plan.done and len(names) < plan.total
    assert len([name for name in names if name.startswith("random")]) == 3, "controls have their own seeds"
    # What it found is what the plan finds in these metrics, and it stopped at the first verdict.
    values = {seed: metrics(f"trial-02-seed{seed}")["accuracy"] for seed in range(seeds)}
    look = plan.confirmation.plan.look(values, values)
    assert look.status == "lossless" and plan.confirmation.looks["trial-02"] == look
    fewer = {seed: value for seed, value in values.items() if seed < seeds - 1}
    assert plan.confirmation.plan.look(fewer, fewer).status == "continue"
    assert said[0].startswith(
        "confirming trial-02 against the baseline: looks after 3, 4, ... 9 seeds, error 5.0%, margin 0.22; at "
        "most 18 runs, 1 minutes"
    )
    assert "more seeds for a verdict" in said[1] and said[-1].endswith("lossless")


def test_runs_carry_the_plan_that_the_file_asks_for(tmp_path: Path) -> None:
    confirm = {"winners": 2, "max_seeds": 5, "error": 0.02, "pairing": "paired"}
    plan = SweepPlan(loaded(tmp_path, margin=0.3, confirm=confirm))
    expected = plan_for(0.3, error=0.02, max_seeds=5, winners=2, pairing="paired")
    run_through(plan, limit=len(SEARCH))
    configs = [plan.suggest(f"c{number}") for number in range(3)]
    assert [config["role"] for config in configs] == ["baseline", "winner", "winner"]
    assert [config["plan"] for config in configs] == [None, expected.to_dict(), expected.to_dict()]


def test_winners_are_judged_together_and_those_without_a_chance_are_given_up(tmp_path: Path) -> None:
    """Two winners on 359 test images: one is as good, but equal metrics are no certainty, so it takes a fourth
    seed; the other lies at the margin, where no number of seeds would tell, and leaves it the error."""
    confirm = {"winners": 2, "max_seeds": 6, "pairing": "paired"}
    sweep = loaded(tmp_path, margin=0.3, controls={}, confirm=confirm)
    keys = [{"pruning.prune_ratio": ratio} for ratio in (0.2, 0.4)]
    winners = [
        Outcome(name, "trial", name, keys[place], FinalMetrics.from_dict({}))
        for place, name in enumerate("ab")
    ]
    plan = confirmation_plan(sweep.settings, 2)
    assert plan is not None
    confirmation, finished = Confirmation(sweep, winners, plan), {}
    below = {"baseline": (0.0,) * 6, "a": (0.0,) * 6, "b": (0.6, 0.0, 0.3, 0.3, 0.3, 0.3)}
    values: dict[str, dict[int, float]] = {name: {} for name in below}
    while runs := confirmation.next_runs(finished):
        for run in runs:
            name, _, seed = run.name.partition("-seed")
            assert run.name not in finished
            values[name][int(seed)] = 97.0 - below[name][int(seed)]
            found = {"accuracy": values[name][int(seed)], "val_accuracy": 90.0, "test_samples": 359}
            metrics = FinalMetrics.from_dict(found | {"seed": int(seed)})
            finished[run.name] = Outcome(run.name, run.role, name, {}, metrics)
    assert {name: len(seeds) for name, seeds in values.items()} == {"baseline": 4, "a": 4, "b": 3}
    assert {name: look.status for name, look in confirmation.looks.items()} == {
        "a": "lossless",
        "b": "futile",
    }
    level = values.pop("baseline")
    assert confirmation.looks == settle(plan, values, level, grain=100 / 359)


def test_a_plan_that_is_at_its_end_can_be_extended(tmp_path: Path) -> None:
    """With more seeds asked for, only these run; the error of the whole is computed and told."""
    short = loaded(tmp_path, margin=0.15, confirm={"winners": 1, "max_seeds": 4})
    first = SweepPlan(short)
    names = run_through(first)
    assert names[-1].endswith("seed3")
    past = [replace(run, plan=first.confirmation.plan) for run in records(first, names)]  # type: ignore[union-attr]
    longer = loaded(tmp_path, margin=0.15, confirm={"winners": 1, "max_seeds": 6})
    assert longer.key == short.key
    second = SweepPlan(longer, past)
    assert run_through(second) == ["baseline-seed4", "trial-02-seed4"], "whose look is the verdict"
    plan = second.confirmation.plan  # type: ignore[union-attr]
    assert plan is not None and plan.looks == (3, 4, 5, 6) and 0.05 < plan.error < 0.1


def test_runs_under_way_are_waited_for_where_they_decide_the_winner(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path, controls={}, trials=2))
    begun = {config["run_name"]: slot for slot in "abcd" if isinstance(config := plan.suggest(slot), dict)}
    assert list(begun) == [SEARCH[0], "trial-01", SEARCH[3], "trial-02"]
    for name in ("trial-01", "trial-02", SEARCH[0]):
        assert plan.suggest("e") is None
        plan.on_trial_complete(begun[name], metrics(name))
    assert plan.suggest("e") is None, "the baseline's level is not known"
    plan.on_trial_complete(begun[SEARCH[3]], metrics(SEARCH[3]))
    assert plan.suggest("e")["run_name"] == "baseline-seed0"


def test_a_search_does_not_read_the_test_split(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    configs = [plan.suggest("a"), plan.suggest("b")]
    assert [(config["role"], config["test"]) for config in configs] == [("baseline", True), ("trial", False)]
    assert [config["experiment"]["train"]["seed"] for config in configs] == [SEARCH_SEED, SEARCH_SEED]


def test_a_baseline_that_fails_late_costs_a_seed_and_not_the_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    run_through(plan, limit=3)
    assert plan.suggest("late")["run_name"] == SEARCH[3]
    plan.on_trial_complete("late", {"error": "a lost disk"})
    assert plan.failure is None
    assert run_through(plan) == WHOLE[4:]
    assert plan.done


def test_a_baseline_without_the_metric_that_is_searched_for_ends_the_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    plan.suggest("first")
    plan.on_trial_complete("first", {"train_flops": 1.0, "baseline_key": "k", "final": True})
    assert plan.failure is not None and plan.failure.startswith(
        "it has no metric 'val_accuracy'; expected data"
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
    """Even where another trial would win now: here the search's baselines are worse than they were."""
    first = SweepPlan(loaded(tmp_path))
    run_through(first)
    past = [worse(run) if run.name in SEARCH else run for run in records(first, WHOLE)]
    more = SweepPlan(loaded(tmp_path, seeds=[0, 1, 2, 3]), past)
    assert run_through(more) == ["trial-02-seed3", "baseline-seed3", "random-seed3"]
    assert more.done


def worse(run: Record) -> Record:
    """A baseline that all trials reach."""
    if run.role != "baseline":
        return run
    return replace(run, metrics=FinalMetrics.from_dict(run.final.to_dict() | {"val_accuracy": 0.0}))


def test_the_baselines_of_the_search_alone_say_who_wins(tmp_path: Path) -> None:
    """A sweep that ended after the first run of the confirmation finds the same winner again."""
    first = SweepPlan(loaded(tmp_path))
    names = run_through(first, limit=len(SEARCH) + 1)
    past = [run if run.name in SEARCH else worse(run) for run in records(first, names)]
    assert run_through(SweepPlan(loaded(tmp_path), past)) == WHOLE[len(names) :]
