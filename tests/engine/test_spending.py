"""The level of a look, against an exact calculation of what all looks together err."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raytrain_speedup.engine.estimate import Estimate, Pairing
from raytrain_speedup.engine.spending import look_level

EVERY = tuple(range(3, 13))


def chance_of_any(level: float, looks: tuple[int, ...], points: int = 600) -> float:
    """That the t statistic of normal figures with mean 0 is beyond its quantile at any of the looks; no random
    numbers.

    c = sum / root of the sum of squares, at n figures, is a Markov chain: the root grows independently of the
    direction in which the figures lie. The next c is c cos(a) + sin(a), with the density of the angle `a`
    proportional to cos(a)^(n - 1). What is followed, from the last look to the first, is the chance of no look
    beyond, as a function of c.
    """
    angle = (np.arange(points) + 0.5) / points * np.pi - np.pi / 2
    after, none = np.array([-9.0, 9.0]), np.ones(2)
    for n in range(looks[-1], looks[0] - 1, -1):
        weight = np.cos(angle) ** (n - 1)
        c = np.linspace(-np.sqrt(n), np.sqrt(n), points)
        none = np.interp(np.outer(c, np.cos(angle)) + np.sin(angle), after, none) @ (weight / weight.sum())
        t = stats.t.ppf(1 - level, n - 1)
        if n in looks:
            none[c > t * np.sqrt(n / (n - 1 + t**2))] = 0.0
        after = c
    first = stats.t.ppf((np.arange(20_000) + 0.5) / 20_000, looks[0] - 1)
    c = first * np.sqrt(looks[0] / (looks[0] - 1 + first**2))
    return float(1 - np.interp(c, after, none).mean())


@pytest.mark.parametrize("looks", [EVERY, (4, 8, 12), (3, 6), (5,)])
@pytest.mark.parametrize("error", [0.05, 0.05 / 3])
def test_the_looks_together_have_the_error(looks: tuple[int, ...], error: float) -> None:
    assert chance_of_any(look_level(error, looks, "paired"), looks) == pytest.approx(error, rel=0.03)


def test_one_look_has_the_whole_error_and_more_share_it() -> None:
    levels = [look_level(0.05, looks, "paired") for looks in ((12,), (6, 12), (4, 8, 12), EVERY)]
    assert levels[0] == pytest.approx(0.05, rel=0.02)
    assert levels == sorted(levels, reverse=True) and levels[-1] == pytest.approx(0.012, rel=0.02)


def test_the_level_is_always_the_same() -> None:
    from raytrain_speedup.engine.spending import _smallest_levels

    once = look_level(0.05, (3, 4), "paired")
    _smallest_levels.cache_clear()
    assert look_level(0.05, (3, 4), "paired") == once


@pytest.mark.parametrize("beforehand", [0, 6])
@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_unpaired_looks_keep_the_error_whatever_the_spreads(spread: float, beforehand: int) -> None:
    level = look_level(0.05, EVERY, "unpaired", beforehand)
    x, y = np.random.default_rng(5).standard_normal((2, 20_000, 12))
    pairing: Pairing = "unpaired"
    erred = np.zeros(len(x), dtype=bool)
    for n in EVERY:
        found = Estimate.of(spread * x[:, :n], y[:, : max(n, beforehand)], pairing)
        erred |= found.bounds(level, level)[0] > 0
    assert erred.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(x))
