"""Verdicts: how often they err, simulated (`pytest -s` shows the tables), and what a look says.

The simulations have formulas of their own, and one test holds them against `Plan.look`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy import stats

from raytrain_speedup.engine.verdict import Look, Plan, fixed_look, plan_for, settle, verdict

Array = NDArray[np.float64]
MARGIN, SD = 0.3, 0.17
"""In points; the standard deviation is that of one run over seeds, so .24 of a difference."""
REPEATED = 40_000
NOISE = 3 * math.sqrt(0.05 * 0.95 / REPEATED)
PLAN = plan_for(MARGIN)


def lower_bounds(differences: Array, n: int, level: float, grain: float = 0.0) -> Array:
    """Of the first n paired differences in each row."""
    error = differences[:, :n].std(axis=1, ddof=1) / math.sqrt(n)
    rounding = grain * math.sqrt(2 / n / 12)
    return differences[:, :n].mean(axis=1) - stats.t.ppf(1 - level, n - 1) * np.maximum(error, rounding)


def lossless(differences: Array, looks: range | list[int], level: float, grain: float = 0.0) -> NDArray[np.bool_]:
    """Rows that any of the looks finds lossless: a user who stops at will stops there."""
    found = [lower_bounds(differences, n, level, grain) > -MARGIN for n in looks]
    return np.any(found, axis=0)


def on_the_boundary(draw: Callable[[np.random.Generator, tuple[int, int]], Array]) -> Array:
    """Differences whose true mean is -margin, of spread SD x sqrt(2) where they have one."""
    return -MARGIN + SD * math.sqrt(2) * draw(np.random.default_rng(2), (REPEATED, 12))


def on_a_grid(grain: float, spread: float) -> Array:
    """Differences of two sides whose figures are whole test samples; the true means lie anywhere on the grid."""
    random = np.random.default_rng(3)
    place = random.uniform(0, grain, (2, REPEATED, 1))
    place[1] = place[0] + (place[1] - place[0])  # each side has a place of its own
    sides = place + spread * random.standard_normal((2, REPEATED, 12))
    many = np.arange(-40, 41) * grain
    edges = (many[:, None] + grain / 2 - place[:, :, 0].reshape(-1)) / spread
    return sides
