"""Bounds of differences and ratios, against scipy's own tests and against what they must never do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raytrain_speedup.engine.statistics.estimate import (
    Estimate,
    correlation_over_seeds,
    over_seeds,
    ratio_interval,
    required_seeds,
)

points = st.floats(0, 100, allow_nan=False).map(lambda value: round(value, 3))
METHOD, BASELINE = [91.2, 90.1, 92.4, 88.0], [91.0, 90.6, 90.9, 91.3]


def test_paired_bounds_are_those_of_the_paired_t_test() -> None:
    found = Estimate.of(np.array(METHOD), np.array(BASELINE), "paired")
    expected = stats.ttest_rel(METHOD, BASELINE).confidence_interval(0.90)
    assert found.bounds(0.05, 0.05) == pytest.approx((expected.low, expected.high))
    assert found.freedom == 3


def test_paired_bounds_by_hand() -> None:
    """t(0.95, 2) = 2.919986; the differences 1, 2, 3 have mean 2 and standard error 1/sqrt(3)."""
    found = Estimate.of(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), "paired")
    half = 2.919986 / math.sqrt(3)
    assert found.bounds(0.05, 0.05) == pytest.approx((2 - half, 2 + half), abs=1e-5)


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_unpaired_bounds_are_those_of_welchs_test(seeds: int) -> None:
    found = Estimate.of(np.array(METHOD), np.array(BASELINE[:seeds]), "unpaired")
    expected = stats.ttest_ind(METHOD, BASELINE[:seeds], equal_var=False).confidence_interval(0.90)
    assert found.bounds(0.05, 0.05) == pytest.approx((expected.low, expected.high))


def test_each_bound_has_its_own_level() -> None:
    found = Estimate.of(np.array(METHOD), np.array(BASELINE), "paired")
    wide, narrow = (stats.ttest_rel(METHOD, BASELINE).confidence_interval(1 - 2 * e) for e in (0.01, 0.05))
    assert found.bounds(0.01, 0.05) == pytest.approx((wide.low, narrow.high))


def test_nothing_that_varies_is_known_up_to_the_grain() -> None:
    """The standard error of a difference rounded to the grain on both sides: grain x sqrt((1/n + 1/m) / 12)."""
    constant = Estimate.of(np.full(3, 99.0), np.full(4, 98.0), "unpaired", grain=0.3)
    assert constant.error == pytest.approx(0.3 * math.sqrt((1 / 3 + 1 / 4) / 12))
    assert constant.freedom == pytest.approx(2**2 / (1 / 2 + 1 / 3))
    assert Estimate.of(np.array(METHOD), np.array(BASELINE), "paired", grain=0.3).error == pytest.approx(
        stats.sem(np.subtract(METHOD, BASELINE))
    )


def test_a_tiny_variance_beside_none_does_not_underflow() -> None:
    found = Estimate.of(np.array([0.0, 1e-160, 0.0]), np.zeros(5), "unpaired")
    assert found.freedom == pytest.approx(2.0)


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    method, baseline = np.random.default_rng(0).normal(size=(2, 7, 5))
    together = Estimate.of(method, baseline[:, :4], "unpaired").bounds(0.02, 0.03)
    for row in range(7):
        alone = Estimate.of(method[row], baseline[row, :4], "unpaired").bounds(0.02, 0.03)
        assert alone == pytest.approx((together[0][row], together[1][row]))


@pytest.mark.parametrize(("pairing", "freedom"), [("paired", 11), ("unpaired", 22)])
def test_more_seeds_of_the_same_spread(pairing: str, freedom: float) -> None:
    """Four seeds thrice: the standard deviation of 12 metrics would be smaller by sqrt(12/11 x 3/4)."""
    now = Estimate.of(np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 1.0, 3.0, 2.0]), pairing)  # type: ignore[arg-type]
    later = now.after(np.array(12))
    assert later.error == pytest.approx(now.error / math.sqrt(3))
    assert later.freedom == pytest.approx(freedom)
    assert later.difference == now.difference


def test_a_larger_baseline_stays_as_large() -> None:
    now = Estimate.of(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 3.0, 2.0, 2.0, 1.0]), "unpaired")
    later = now.after(np.array([4, 9]), baseline_seeds=6)
    assert later.counts[1].tolist() == [6, 9]


def test_seeds_pair_by_their_number() -> None:
    method, baseline = over_seeds({3: 0.3, 1: 0.1, 7: 0.7}, {1: 10.0, 2: 20.0, 3: 30.0}, "paired")
    assert method.tolist() == [0.1, 0.3] and baseline.tolist() == [10.0, 30.0]
    method, baseline = over_seeds({3: 0.3, 1: 0.1}, {2: 20.0, 0: 1.0, 1: 10.0}, "unpaired")
    assert method.tolist() == [0.1, 0.3] and baseline.tolist() == [1.0, 10.0, 20.0]


def test_correlation_over_the_seeds_of_both_sides() -> None:
    method = {4: 0.0, 0: 3.0, 1: 1.0, 2: 2.5, 3: 2.0}
    baseline = {9: 7.0, 1: 1.5, 0: 2.0, 3: 2.5, 2: 2.2}
    common = [0, 1, 2, 3]
    expected = np.corrcoef([method[s] for s in common], [baseline[s] for s in common])[0, 1]
    assert correlation_over_seeds(method, baseline) == pytest.approx(expected)
    assert correlation_over_seeds({0: 1.0, 1: 2.0}, {0: 1.0, 1: 3.0}) is None
    assert correlation_over_seeds(dict.fromkeys(range(4), 0.1), baseline) is None


@given(st.dictionaries(st.integers(0, 9), points, min_size=2), st.floats(-50, 50))
def test_a_constant_shift_of_every_seed_is_known_exactly(baseline: dict[int, float], shift: float) -> None:
    ours = {seed: value + shift for seed, value in baseline.items()}
    found = Estimate.of(*over_seeds(ours, baseline, "paired"), "paired")
    assert found.bounds(0.05, 0.05) == pytest.approx((shift, shift), abs=1e-6)


@given(st.lists(points, min_size=2, max_size=6), st.lists(points, min_size=2, max_size=6))
def test_bounds_hold_the_difference_and_turn_with_the_sides(
    method: list[float], baseline: list[float]
) -> None:
    found = Estimate.of(np.array(method), np.array(baseline), "unpaired")
    lower, upper = found.bounds(0.05, 0.05)
    assert lower <= found.difference <= upper
    back = Estimate.of(np.array(baseline), np.array(method), "unpaired")
    assert back.bounds(0.05, 0.05) == pytest.approx((-upper, -lower), abs=1e-6)


def test_a_ratio_is_that_of_the_geometric_means() -> None:
    method, baseline = {0: 10.0, 1: 12.0, 2: 11.0}, {0: 15.0, 1: 17.0, 2: 16.9}
    logs = [math.log(baseline[seed] / method[seed]) for seed in range(3)]
    expected = stats.ttest_1samp(logs, 0).confidence_interval(0.90)
    ratio, interval = ratio_interval(method, baseline, confidence=0.90, paired=True)
    assert ratio == pytest.approx((15 * 17 * 16.9 / (10 * 12 * 11)) ** (1 / 3))
    assert interval == pytest.approx((math.exp(expected.low), math.exp(expected.high)))


def test_an_unpaired_ratio_is_welchs() -> None:
    method, baseline = {0: 10.0, 1: 12.0, 2: 11.0}, {0: 15.0, 1: 17.0, 5: 16.9, 6: 16.0}
    sides = [np.log(list(side.values())) for side in (baseline, method)]
    expected = stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
    ratio, interval = ratio_interval(method, baseline, paired=False)
    assert ratio == pytest.approx(stats.gmean(list(baseline.values())) / stats.gmean(list(method.values())))
    assert interval == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    paired, _ = ratio_interval(method, baseline, paired=True)
    assert paired == pytest.approx(math.sqrt(15 * 17 / (10 * 12)))


def test_a_machine_that_slows_down_for_both_sides_leaves_a_paired_ratio_alone() -> None:
    slow = [1.0, 3.0, 0.5, 7.0]
    baseline = dict(enumerate(15 * factor for factor in slow))
    method = dict(enumerate(10 * factor for factor in slow))
    assert ratio_interval(method, baseline, paired=True) == (
        pytest.approx(1.5),
        pytest.approx((1.5, 1.5)),
    )
    _, (low, high) = ratio_interval(method, baseline, paired=False)  # type: ignore[misc]
    assert low < 1 and high > 2


@pytest.mark.parametrize("paired", [True, False])
def test_one_seed_has_a_ratio_but_no_interval(paired: bool) -> None:
    assert ratio_interval({0: 10.0}, {0: 15.0, 1: 30.0}, paired=paired)[1] is None
    assert ratio_interval({0: 10.0}, {0: 15.0}, paired=paired) == (pytest.approx(1.5), None)


@pytest.mark.parametrize(
    ("margin", "pairing", "seeds"),
    [(0.3, "paired", 6), (0.2, "paired", 11), (0.3, "unpaired", 5), (0.2, "unpaired", 10)],
)
def test_required_seeds_reach_the_power_and_fewer_do_not(margin: float, pairing: str, seeds: int) -> None:
    """The standard deviation .17 is that of one run; of a difference it is .24."""
    assert required_seeds(margin, 0.17, pairing=pairing) == seeds  # type: ignore[arg-type]
    x, y = np.random.default_rng(0).normal(0, 0.17, (2, 20_000, seeds))
    for count, enough in ((seeds, True), (seeds - 1, False)):
        found = Estimate.of(x[:, :count], y[:, :count], pairing)  # type: ignore[arg-type]
        power = (found.bounds(0.05, 0.05)[0] > -margin).mean()
        assert (power > 0.795) == enough


def test_required_seeds_at_the_ends() -> None:
    assert required_seeds(0.3, 0.0) == required_seeds(10, 0.01) == 3
    assert required_seeds(0.3, 3.0) is None
    assert required_seeds(0.3, 0.17, difference=-0.3) is None
    assert required_seeds(0.3, 0.17, difference=-0.1) == required_seeds(0.2, 0.17)
    assert required_seeds(0.3, 0.17, correlation=0.5) < required_seeds(0.3, 0.17)  # type: ignore[operator]
    assert required_seeds(0.3, 0.17, error=0.01) > required_seeds(0.3, 0.17)  # type: ignore[operator]
    assert required_seeds(0.3, 0.17, power=0.95) > required_seeds(0.3, 0.17)  # type: ignore[operator]
