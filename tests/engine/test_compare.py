"""The statistics behind "lossless", against scipy's own tests and against what they must never do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raytrain_speedup.engine.compare import NotComparable, compare, difference_interval, verdict

points = st.floats(0, 100, allow_nan=False).map(lambda value: round(value, 3))


def run(seed: int = 0, accuracy: float = 90.0, seconds: float = 10.0, **other: object) -> dict[str, object]:
    return {
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


def test_paired_interval_is_that_of_the_paired_t_test() -> None:
    method, baseline = {0: 91.2, 1: 90.1, 2: 92.4}, {0: 91.0, 1: 90.6, 2: 91.9}
    difference, interval = difference_interval(method, baseline)
    expected = stats.ttest_rel(list(method.values()), list(baseline.values())).confidence_interval(0.90)
    assert interval == pytest.approx((expected.low, expected.high))
    assert difference == pytest.approx(0.2 / 3)


def test_paired_interval_by_hand() -> None:
    """t(0.95, 2) = 2.919986; the differences 1, 2, 3 have mean 2 and standard error 1/sqrt(3)."""
    _, interval = difference_interval({0: 2, 1: 4, 2: 6}, {0: 1, 1: 2, 2: 3})
    half = 2.919986 / math.sqrt(3)
    assert interval == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_seeds_are_paired_by_their_number_and_not_by_their_order() -> None:
    """The differences are 1, 2 and 3 whichever way round the runs came in."""
    baseline = {0: 1.0, 1: 38.0, 2: 597.0}
    difference, interval = difference_interval({2: 600.0, 0: 2.0, 1: 40.0}, baseline)
    half = 2.919986 / math.sqrt(3)
    assert difference == pytest.approx(2) and interval == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_other_seeds_give_welchs_interval() -> None:
    method, baseline = {5: 91.2, 6: 90.1, 7: 92.4, 8: 88.0}, {0: 91.0, 1: 90.6, 2: 90.9}
    _, interval = difference_interval(method, baseline)
    expected = stats.ttest_ind(
        list(method.values()), list(baseline.values()), equal_var=False
    ).confidence_interval(0.90)
    assert interval == pytest.approx((expected.low, expected.high))


@given(st.lists(points, min_size=2, max_size=6), st.lists(points, min_size=2, max_size=6))
def test_the_interval_holds_the_difference_and_turns_with_its_sides(
    method: list[float], baseline: list[float]
) -> None:
    ours, theirs = dict(enumerate(method)), dict(enumerate(baseline))
    difference, interval = difference_interval(ours, theirs)
    assert interval is not None
    lower, upper = interval
    assert lower <= difference <= upper
    back, turned = difference_interval(theirs, ours)
    assert back == pytest.approx(-difference, abs=1e-9)
    assert turned == pytest.approx((-upper, -lower), abs=1e-6)


@given(st.dictionaries(st.integers(0, 9), points, min_size=2), st.floats(-50, 50))
def test_a_constant_shift_of_every_seed_is_known_exactly(baseline: dict[int, float], shift: float) -> None:
    difference, interval = difference_interval(
        {seed: value + shift for seed, value in baseline.items()}, baseline
    )
    assert difference == pytest.approx(shift, abs=1e-9)
    assert interval == pytest.approx((shift, shift), abs=1e-6)


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0, 3))
def test_verdicts(middle: float, half: float, margin: float) -> None:
    found = verdict((middle - half, middle + half), margin)
    assert (found == "lossless") == (middle - half > -margin)
    assert (found == "lossy") == (middle + half < -margin)


def test_three_seeds_without_loss_are_lossless() -> None:
    baselines = [run(seed, 90 + seed, 10) for seed in range(3)]
    runs = [run(seed, 90.1 + seed + 0.1 * (seed == 2), 5, passes_saved=0.5) for seed in range(3)]
    found = compare(runs, baselines, margin=0.5)
    assert found.verdict == "lossless"
    assert found.speedup == pytest.approx(2.0)
    assert found.flops_ratio == pytest.approx(2.0)
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
    ],
)
def test_not_comparable(runs: list[dict], baselines: list[dict], reason: str) -> None:
    with pytest.raises(NotComparable, match=reason):
        compare(runs, baselines)


def test_uncounted_flops_give_no_ratio() -> None:
    assert compare([run(train_flops=0.0)], [run()]).flops_ratio is None


def test_equal_losses_of_few_seeds_are_no_certainty() -> None:
    """Three seeds that each lose 3 of 359 test images: the interval is at least as wide as the grain allows."""
    baselines = [run(seed=seed, accuracy=99.0 + seed / 10, test_samples=359) for seed in range(3)]
    worse = [run(seed=seed, accuracy=99.0 + seed / 10 - 0.84, test_samples=359) for seed in range(3)]
    found = compare(worse, baselines, margin=1.0)
    assert found.interval is not None
    assert found.interval[0] < -1.0 < found.interval[1]
    assert found.verdict == "not yet known"


def test_the_figure_of_merit_is_the_tasks_own() -> None:
    runs = [run(seed, accuracy=0.0, metric="miou", miou=60.0 + seed) for seed in range(3)]
    baselines = [run(seed, accuracy=99.0, metric="miou", miou=60.5 + seed) for seed in range(3)]
    found = compare(runs, baselines, margin=1.0)
    assert found.metric == "miou" and found.accuracy == 61.0
    assert found.difference == pytest.approx(-0.5) and found.verdict == "lossless"
    with pytest.raises(NotComparable, match="no figure 'miou'"):
        compare(runs, [run()])
