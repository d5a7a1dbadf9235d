"""Which runs may be compared, and what a comparison holds."""

from __future__ import annotations

import pytest

from raytrain_speedup.engine.compare import NotComparable, compare
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.metric import Metric


def run(seed: int = 0, accuracy: float | None = 90.0, seconds: float = 10.0, **other: object) -> FinalMetrics:
    known: dict[str, object] = {
        "seed": seed,
        "accuracy": accuracy,
        "train_seconds": seconds,
        "train_flops": 100 * seconds,
        "passes_saved": 0.0,
        "progress": 1.0,
        "baseline_key": "k",
        "hardware": "h",
        **other,
    }
    return FinalMetrics.from_dict({name: value for name, value in known.items() if value is not None})


def test_three_seeds_without_loss_are_lossless() -> None:
    baselines = [run(seed, 90 + seed, 10) for seed in range(3)]
    runs = [run(seed, 90.1 + seed + 0.1 * (seed == 2), 5, passes_saved=0.5) for seed in range(3)]
    found = compare(runs, baselines, margin=0.5)
    assert found.verdict == "lossless"
    assert found.speedup.ratio == pytest.approx(2.0)
    assert found.speedup.flops == pytest.approx(2.0)
    assert found.passes_saved == pytest.approx(0.5)
    assert found.seeds == (0, 1, 2)
    assert found.accuracy_std is not None


def test_a_clear_loss_is_lossy_and_a_wide_interval_is_unknown() -> None:
    baselines = [run(seed, 90 + seed) for seed in range(3)]
    lossy = [run(seed, 87.1 + seed + 0.05 * seed) for seed in range(3)]
    assert compare(lossy, baselines, margin=0.5).verdict == "lossy"
    wide = [run(seed, 90 + seed + 3 * (seed - 1)) for seed in range(3)]
    assert compare(wide, baselines, margin=0.5).verdict == "not yet known"


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_are_never_a_verdict(seeds: int) -> None:
    baselines = [run(seed, 90) for seed in range(3)]
    runs = [run(seed, 95) for seed in range(seeds)]
    assert compare(runs, baselines).verdict == "not yet known"
    assert compare(baselines, runs).verdict == "not yet known"


def test_the_same_seed_again_is_no_new_evidence() -> None:
    baselines = [run(seed, 90 + seed) for seed in range(3)]
    runs = [run(0, 91), run(0, 91), run(0, 91.2)]
    found = compare(runs, baselines)
    assert found.seeds == (0,) and found.interval is None and found.verdict == "not yet known"
    assert found.accuracy == pytest.approx((91 + 91 + 91.2) / 3)


def test_one_run_has_a_difference_but_no_interval() -> None:
    found = compare([run(0, 91)], [run(0, 90), run(1, 92)])
    assert found.difference == pytest.approx(0.0)
    assert found.interval is None and found.accuracy_std is None


@pytest.mark.parametrize(
    ("runs", "baselines", "reason"),
    [
        ([run()], [], "no baseline"),
        ([run(progress=0.4)], [run()], "40%"),
        ([run()], [run(progress=0.99)], "99%"),
        ([run(baseline_key="other")], [run()], "data"),
        ([run(hardware="gpu")], [run()], "hardware: gpu / h"),
        ([run(setup="batch 64, compiled")], [run(setup="batch 64")], "set-up: batch 64 / batch 64, compiled"),
        ([run(epochs=10.0)], [run(epochs=20.0)], "budget, in epochs: 10.0 / 20.0"),
    ],
)
def test_not_comparable(runs: list[FinalMetrics], baselines: list[FinalMetrics], reason: str) -> None:
    with pytest.raises(NotComparable, match=reason):
        compare(runs, baselines)


def test_uncounted_flops_give_no_ratio() -> None:
    assert compare([run(train_flops=0.0)], [run()]).speedup.flops is None


def test_equal_losses_of_few_seeds_are_no_certainty() -> None:
    """Three seeds that each lose 3 of 359 test images: the interval is at least as wide as the grain allows."""
    baselines = [run(seed=seed, accuracy=99.0 + seed / 10, test_samples=359) for seed in range(3)]
    worse = [run(seed=seed, accuracy=99.0 + seed / 10 - 0.84, test_samples=359) for seed in range(3)]
    found = compare(worse, baselines, margin=1.0)
    assert found.interval is not None
    assert found.interval[0] < -1.0 < found.interval[1]
    assert found.verdict == "not yet known"


def test_the_metric_is_the_tasks_own() -> None:
    runs = [run(seed, accuracy=0.0, metric="miou", miou=60.0 + seed) for seed in range(3)]
    baselines = [run(seed, accuracy=99.0, metric="miou", miou=60.5 + seed) for seed in range(3)]
    found = compare(runs, baselines, margin=1.0)
    assert found.metric == Metric("miou") and found.accuracy == 61.0
    assert found.difference == pytest.approx(-0.5) and found.verdict == "lossless"
    with pytest.raises(NotComparable, match="no metric 'miou'"):
        compare(runs, [run()])


def test_a_budget_may_differ_where_it_was_said_to_vary() -> None:
    found = compare([run(epochs=10.0, seconds=5.0)], [run(epochs=20.0)], declared={"train.epochs"})
    assert found.speedup.ratio == pytest.approx(2.0)


def test_a_run_of_the_search_is_judged_on_the_validation_split() -> None:
    """It has not read the test split; the baseline has, and both have read the other one."""
    trial = run(0, accuracy=None, val_accuracy=80.0)
    found = compare([trial], [run(0, accuracy=95.0, val_accuracy=81.0)])
    assert (found.split, found.accuracy, found.difference) == ("validation", 80.0, -1.0)
    confirmed = compare(
        [run(0, accuracy=94.0, val_accuracy=80.0)], [run(0, accuracy=95.0, val_accuracy=81.5)]
    )
    assert (confirmed.split, confirmed.accuracy, confirmed.difference) == ("test", 94.0, -1.0)


def test_seeds_are_matched_by_number_and_not_by_order() -> None:
    baselines = [run(seed, 90 + seed) for seed in range(3)]
    runs = [run(seed, 90 + seed) for seed in (2, 0, 1)]
    assert compare(runs, baselines).interval == pytest.approx((0.0, 0.0), abs=1e-9)
