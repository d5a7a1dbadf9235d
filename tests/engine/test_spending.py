"""The level of a look, against simulations of what all looks together err."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from raytrain_speedup.engine.statistics.estimate import Pairing
from raytrain_speedup.engine.statistics.spending import _smallest_levels, chance_of_any, look_level

EVERY = tuple(range(3, 13))
ROWS = 100_000


@pytest.mark.parametrize("looks", [EVERY, (4, 8, 12), (3, 6)])
@pytest.mark.parametrize("error", [0.05, 0.05 / 3])
def test_paired_looks_together_have_the_error(looks: tuple[int, ...], error: float) -> None:
    level = look_level(error, looks, "paired")
    values = np.random.default_rng(1).standard_normal((12, ROWS)).T
    beyond = np.zeros((2, ROWS), dtype=bool)
    for n in looks:
        t = values[:, :n].mean(axis=1) / (values[:, :n].std(axis=1, ddof=1) / math.sqrt(n))
        quantile = stats.t.ppf(1 - level, n - 1)
        beyond |= np.stack([t > quantile, t < -quantile])
    assert beyond.mean() == pytest.approx(error, abs=3.5 * math.sqrt(error / (2 * ROWS)))


def test_one_look_has_the_whole_error_and_more_share_it() -> None:
    levels = [look_level(0.05, looks, "paired") for looks in ((12,), (6, 12), (4, 8, 12), EVERY)]
    assert levels[0] == pytest.approx(0.05, rel=2e-3)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == pytest.approx(0.01192, abs=2e-5)


def test_two_looks_are_an_integral_over_two_t_statistics() -> None:
    """Looks at 2 and 3 by hand: t of 2 values is Cauchy's; at each, integrate over the third value."""
    level = look_level(0.05, (2, 3), "paired")
    first, second = stats.t.ppf(1 - level, 1), stats.t.ppf(1 - level, 2)
    # In the direction (cos b, sin b) of two values, t is (cos b + sin b) / |cos b - sin b|; b is uniform. The
    # third value over the length of the first two is t / sqrt(2), with Student's t of 2 degrees of freedom.
    b = (np.arange(2000) + 0.5) / 2000 * 2 * np.pi
    pair = np.stack([np.cos(b), np.sin(b)])
    third = stats.t.ppf((np.arange(2000) + 0.5) / 2000, 2)[:, None] / math.sqrt(2)
    total, squares = pair.sum(axis=0) + third, 1 + third**2
    t = total / np.sqrt(3 * (squares - total**2 / 3) / 2)
    beyond = (t > second) | (pair.sum(axis=0) / np.abs(pair[0] - pair[1]) > first)
    assert beyond.mean() == pytest.approx(0.05, abs=5e-4)


def test_an_unpaired_level_is_always_the_same() -> None:
    once = look_level(0.05, (3, 4), "unpaired")
    look_level.cache_clear()
    _smallest_levels.cache_clear()
    assert look_level(0.05, (3, 4), "unpaired") == once


@pytest.mark.parametrize("beforehand", [0, 6])
def test_unpaired_looks_keep_the_error_whatever_the_spreads(beforehand: int) -> None:
    level = look_level(0.05, EVERY, "unpaired", beforehand)
    rows = 20_000
    x, y = np.random.default_rng(5).standard_normal((2, 12, rows)).swapaxes(1, 2)
    for spread in (0.5, 1.0, 3.0):
        erred = np.zeros(rows, dtype=bool)
        for n in EVERY:
            found = stats.ttest_ind(
                spread * x[:, :n], y[:, : max(n, beforehand)], axis=1, equal_var=False, alternative="greater"
            )
            erred |= found.pvalue < level
        assert erred.mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rows)
    assert level > 0.009, "and do not ask for more than the worst of them needs"


def test_a_baseline_that_is_there_beforehand_has_a_level_of_its_own() -> None:
    """A method that spreads more than a well-known baseline has the fewest degrees of freedom."""
    assert look_level(0.05, EVERY, "unpaired", 6) < 0.93 * look_level(0.05, EVERY, "unpaired")


@pytest.mark.parametrize(("pairing", "beforehand"), [("paired", 0), ("unpaired", 0), ("unpaired", 12)])
def test_the_chance_of_any_is_that_of_the_level_it_was_made_from(pairing: Pairing, beforehand: int) -> None:
    level = look_level(0.05, (3, 4, 6), pairing, beforehand)
    whole = chance_of_any([(level, (3, 4, 6))], pairing, beforehand)
    assert whole == pytest.approx(0.05, abs=1e-3)
    assert chance_of_any([(level, (3, 4)), (level, (6,))], pairing, beforehand) == whole
