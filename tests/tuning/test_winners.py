"""Which trials are run again."""

from __future__ import annotations

from raytrain_speedup.tuning.winners import Outcome, pick_winners

OBJECTIVES = {"val_accuracy": "max", "train_flops": "min"}


def trial(name: str, accuracy: float, flops: float, group: str | None = None) -> Outcome:
    return Outcome(name, "trial", group or name, {}, {"val_accuracy": accuracy, "train_flops": flops})


def picked(trials: list[Outcome], count: int, objectives: dict[str, str] = OBJECTIVES) -> list[str]:
    baselines = [{"val_accuracy": 97.0}, {"val_accuracy": 98.0}]
    found = pick_winners(trials, baselines, count=count, margin=0.5, objectives=objectives)
    return [outcome.name for outcome in found]


def test_the_cheapest_of_those_that_lose_nothing() -> None:
    trials = [trial("slow", 98, 9), trial("fast", 97.1, 3), trial("middle", 97.4, 5), trial("poor", 96, 1)]
    assert picked(trials, 2) == ["fast", "middle"]


def test_then_the_most_accurate() -> None:
    trials = [trial("poor", 90, 1), trial("fine", 97.2, 5), trial("nearly", 96.9, 4)]
    assert picked(trials, 3) == ["fine", "nearly", "poor"]


def test_equal_settings_count_once_and_others_are_not_forgotten() -> None:
    trials = [trial("a", 98, 3, "same"), trial("b", 98, 3, "same"), trial("c", 98, 4)]
    assert picked(trials, 2) == ["a", "c"]


def test_seconds_are_the_cost_of_a_single_objective() -> None:
    one = Outcome("one", "trial", "1", {}, {"val_accuracy": 98.0, "train_seconds": 3.0})
    two = Outcome("two", "trial", "2", {}, {"val_accuracy": 99.0, "train_seconds": 5.0})
    assert picked([two, one], 1, {"val_accuracy": "max"}) == ["one"]


def test_no_baseline_and_no_trials() -> None:
    assert picked([], 2) == []
    assert pick_winners([trial("a", 1, 1)], [], count=1, margin=0, objectives=OBJECTIVES)[0].name == "a"
