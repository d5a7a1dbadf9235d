"""Which trials are run again, and what that does to a sweep (simulated; `pytest -s` shows the table)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.statistics.estimate import Array, Estimate
from raytrain_speedup.engine.statistics.verdict import plan_for
from raytrain_speedup.metric import Direction
from raytrain_speedup.tuning.objective import Objective
from raytrain_speedup.tuning.proof import Proof, ladder
from raytrain_speedup.tuning.winners import Outcome, pick_ladder, pick_winners

OBJECTIVES: dict[str, Direction] = {"val_accuracy": "max", "train_flops": "min"}


def asked(directions: dict[str, Direction] = OBJECTIVES) -> Objective:
    return Objective("pareto", directions, margin=0.5)


def trial(name: str, accuracy: float, flops: float, group: str | None = None) -> Outcome:
    return Outcome(name, "trial", group or name, {}, final(val_accuracy=accuracy, train_flops=flops))


def final(**metrics: float) -> FinalMetrics:
    return FinalMetrics.from_dict(metrics)


def picked(trials: list[Outcome], count: int, objectives: dict[str, Direction] = OBJECTIVES) -> list[str]:
    baselines = [{"val_accuracy": 97.0}, {"val_accuracy": 98.0}]
    found = pick_winners(trials, baselines, count=count, objective=asked(objectives))
    return [outcome.name for outcome in found]


def test_the_cheapest_of_those_that_reach_the_baselines_mean() -> None:
    trials = [trial("slow", 98, 9), trial("fast", 97.5, 3), trial("middle", 97.6, 5), trial("poor", 97.4, 1)]
    assert picked(trials, 2) == ["fast", "middle"]
    assert picked(trials, 4) == ["fast", "middle", "slow", "poor"]


def test_then_the_most_accurate() -> None:
    trials = [trial("poor", 90, 1), trial("fine", 97.7, 5), trial("nearly", 97.4, 4), trial("less", 97.2, 3)]
    assert picked(trials, 4) == ["fine", "nearly", "less", "poor"]


def test_a_metric_that_is_to_be_small_is_reached_from_above() -> None:
    trials = [
        Outcome(name, "trial", name, {}, final(val_loss=loss, train_flops=flops))
        for name, loss, flops in (("worse", 1.2, 1.0), ("better", 0.9, 4.0), ("equal", 1.0, 3.0))
    ]
    objectives: dict[str, Direction] = {"val_loss": "min", "train_flops": "min"}
    baselines = [{"val_loss": 0.9}, {"val_loss": 1.1}]
    found = pick_winners(trials, baselines, count=3, objective=asked(objectives))
    assert [outcome.name for outcome in found] == ["equal", "better", "worse"]


def test_equal_settings_count_once_and_others_are_not_forgotten() -> None:
    trials = [trial("a", 98, 3, "same"), trial("b", 98, 3, "same"), trial("c", 98, 4)]
    assert picked(trials, 2) == ["a", "c"]


def test_seconds_are_the_cost_of_a_single_objective() -> None:
    one = Outcome("one", "trial", "1", {}, final(val_accuracy=98.0, train_seconds=3.0))
    two = Outcome("two", "trial", "2", {}, final(val_accuracy=99.0, train_seconds=5.0))
    assert picked([two, one], 1, {"val_accuracy": "max"}) == ["one"]


def test_no_baseline_and_no_trials() -> None:
    assert picked([], 2) == []
    assert pick_winners([trial("a", 1, 1)], [], count=1, objective=asked())[0].name == "a"


def test_the_ladder_saves_most_of_all() -> None:
    """By trying every ladder. A dearer one that is less likely to be proven is on none."""
    random = np.random.default_rng(0)
    for count in (1, 2, 3):
        cost_N, chance_N = random.uniform(0.2, 1.1, 6), random.uniform(0, 1, 6)
        chance_N[0], cost_N[0] = 0.99, 0.95

        def saved(places: Sequence[int], cost_N: Array = cost_N, chance_N: Array = chance_N) -> float:
            total, sure, chance = 0.0, 1.0, 1.0
            for place in places:
                chance *= chance_N[place]
                total, sure = total + chance * (sure - cost_N[place]), cost_N[place]
            return total

        falling = [
            places
            for length in range(count + 1)
            for places in permutations(range(6), length)
            if all(cost_N[a] > cost_N[b] for a, b in pairwise(places))
        ]
        found = ladder(cost_N, chance_N, baseline=1.0, count=count)
        assert saved(found) == pytest.approx(max(map(saved, falling))) and 0 < len(found) <= count
    assert ladder(np.array([1.2]), np.array([0.9]), baseline=1.0, count=2) == []
    assert ladder(np.array([]), np.array([]), baseline=1.0, count=2) == []


def test_the_chance_of_a_proof_is_that_of_simulated_confirmations() -> None:
    """Of one look at twelve seeds a side, where the margin is .5 and the noise .3."""
    random, plan = np.random.default_rng(0), plan_for(0.5, min_seeds=12, max_seeds=12, pairing="unpaired")
    baseline = 0.3 * random.standard_normal((2000, 12))
    method = -0.25 + 0.1 * random.standard_normal((2000, 1)) + 0.3 * random.standard_normal((2000, 12))
    below, _ = Estimate.of(method, baseline, "unpaired").bounds(plan.levels[0], plan.levels[0])
    found = Proof.by(plan, 1).chance(np.array([0.25]), np.array([0.1]), 0.3)
    assert found[0] == pytest.approx((below > -0.5).mean(), abs=0.03)


def test_trials_are_picked_from_safe_to_bold_and_not_by_their_luck() -> None:
    trials = [trial(name, 99.9, flops) for name, flops in (("a", 1), ("b", 2), ("c", 3), ("d", 4))]
    objective = Objective("cheapest-lossless", OBJECTIVES, margin=1.0)

    def names(chances: list[float]) -> list[str]:
        found = pick_ladder(trials, chances, count=2, objective=objective, baseline=5.0)
        return [outcome.name for outcome in found]

    assert names([0.0, 0.6, 0.5, 0.95]) == ["d", "b"]
    assert names([0.0, 0.9, 0.9, 0.9]) == ["b"]
    assert names([0.0, 0.0, 0.0, 0.0]) == ["a"], "where none is likely, something is tried all the same"


MARGIN, SD = 0.3, 0.17
SWEEPS = 500
WINNERS = 2
TRIALS = 16
PLAN = plan_for(MARGIN, winners=WINNERS)
LANDSCAPES = {
    "loss from the start": (2, 0.0),
    "mild": (4, 0.2),
    "a flat part": (10, 0.3),
    "a cliff": (30, 0.4),
}
"""The loss in points is steep x (saving - start)^2 beyond the start."""


def verdicts(differences: NDArray[np.float64]) -> NDArray[np.int64]:
    """1 for lossless, -1 for lossy, 0 for neither, of confirmations with these true differences."""
    random = np.random.default_rng(1)
    seeds = differences[:, None] + SD * np.sqrt(2) * random.standard_normal(
        (len(differences), PLAN.max_seeds)
    )
    found = np.zeros(len(differences), dtype=np.int64)
    for n in PLAN.looks:
        mean, error = seeds[:, :n].mean(axis=1), seeds[:, :n].std(axis=1, ddof=1) / np.sqrt(n)
        half = stats.t.ppf(1 - PLAN.levels[-1], n - 1) * error
        found[(found == 0) & (mean - half > -MARGIN)] = 1
        found[(found == 0) & (mean + half < -MARGIN)] = -1
    return found


def confirmed(steep: float, start: float, above: float) -> tuple[float, float, float]:
    """Sweeps without a proven winner, with a falsely proven one, and the mean of the best proven speedups, if
    winners are to reach the baseline's mean and so much more."""
    random = np.random.default_rng(0)
    true, speedups = [], []
    for _ in range(SWEEPS):
        saving = random.uniform(0, 0.7, TRIALS)
        loss = steep * np.maximum(0, saving - start) ** 2 + random.normal(0, 0.05, TRIALS)
        seen = 90 - loss + random.normal(0, SD, TRIALS)
        trials = [
            trial(str(i), metric, 1 - saved)
            for i, (metric, saved) in enumerate(zip(seen, saving, strict=True))
        ]
        baselines = [{"val_accuracy": 90 + above + luck} for luck in random.normal(0, SD, 2)]
        winners = pick_winners(trials, baselines, count=WINNERS, objective=asked())
        chosen = [int(winner.name) for winner in winners]
        true.append(-loss[chosen])
        speedups.append(1 / (1 - saving[chosen]))
    lossless = verdicts(np.ravel(true)).reshape(SWEEPS, WINNERS) == 1
    false = (lossless & (np.array(true) <= -MARGIN)).any(axis=1).mean()
    best = np.where(lossless, speedups, 1.0).max(axis=1).mean()
    return float((~lossless).all(axis=1).mean()), float(false), float(best)


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_winners_that_reach_the_baseline_are_proven_more_often(landscape: str) -> None:
    """Fewer sweeps without a proven winner, no more false ones, and not slower, than winners within the margin."""
    print(f"\n{landscape:20} to reach, from the mean: none proven  falsely proven  mean proven speedup")
    found = {
        above: confirmed(*LANDSCAPES[landscape], above) for above in (-MARGIN, -MARGIN / 2, 0.0, MARGIN / 2)
    }
    for above, (none, false, speedup) in found.items():
        print(f"{above:+45.2f} {none:13.2f} {false:14.3f} {speedup:19.2f}")
    greedy, rule = found[-MARGIN], found[0.0]
    assert rule[0] < 0.6 * greedy[0]
    assert rule[1] <= greedy[1] + 0.005
    assert rule[2] > greedy[2] - 0.03
