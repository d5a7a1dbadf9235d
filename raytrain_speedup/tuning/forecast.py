"""Where a run will end, from where others went: how trials are stopped that cannot reach the bound any more.

A final quality is forecast by regression: from what finished runs had at the same progress, and had in the end.
Curves draw together, and what is far behind now is so by bad luck too: who adds to a run that is stopped for being
behind what the others gained, forecasts it too low by as much as the margin, and what is learnt of such runs bends
the surface of all others. Nothing is assumed of the shape of a curve, and the doubt of the forecast is that of the
regression. The baseline's curves count as those of any run. (Successive halving, Li et al. 2020, stops whatever is
not among the best third: of trials that all search the end of lossless, two thirds of those that reach it.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from scipy.special import stdtr

from raytrain_speedup.engine.compare import FULL_BUDGET

Curve = list[tuple[float, float]]
"""Progress and quality (larger is better) of the reports of a run."""

CLOSING, CLOSING_SPREAD = -0.5, 0.5
"""What a run gains more than others do for each point that it is ahead of them now: a guess, and its deviation."""

FEWEST = 4
"""Curves that are needed to forecast another."""


@dataclass(frozen=True)
class Forecast:
    """Of a final quality: Student's t around a mean.

    Attributes:
        deviation: of the forecast.
        freedom: degrees of it.
    """

    mean: float
    deviation: float
    freedom: int

    def chance_to_reach(self, bound: float) -> float:
        return float(stdtr(self.freedom, (self.mean - bound) / self.deviation))


@dataclass
class Curves:
    """The curves of a search, by name of the run."""

    _running: dict[str, Curve] = field(default_factory=dict)
    _whole: dict[str, Curve] = field(default_factory=dict)
    _roles: dict[str, str] = field(default_factory=dict)

    def report(self, name: str, progress: float, quality: float, *, role: str = "trial") -> None:
        """A point of a run; one at full progress finishes it. Points without a quality are passed over."""
        if not math.isfinite(quality):
            return
        self._roles[name] = role
        if name in self._whole:  # the final metrics come after those of the last epoch
            self._whole[name][-1] = (progress, quality)
            return
        curve = self._running.setdefault(name, [])
        if curve and progress <= curve[-1][0]:  # it was tried again, from its last checkpoint
            curve[:] = [point for point in curve if point[0] < progress]
        curve.append((progress, quality))
        if progress >= FULL_BUDGET:
            self._whole[name] = self._running.pop(name)

    def usual(self, role: str, progress: float) -> float | None:
        """The mean quality of the finished runs of a role at a progress; None without any."""
        known = [curve for name, curve in self._whole.items() if self._roles[name] == role]
        return fmean(_at(curve, progress) for curve in known) if known else None

    def forecast(self, name: str) -> Forecast | None:
        """Of a run under way, or stopped; None where too few others are known."""
        curve = self._running.get(name)
        if not curve:
            return None
        progress, quality = curve[-1]
        others = [
            (_at(other, progress), other[-1][1]) for other in self._whole.values() if other[0][0] <= progress
        ]
        return None if len(others) < FEWEST else _regressed(others, quality)


def _regressed(others: Sequence[tuple[float, float]], quality: float) -> Forecast:
    """The final quality of a run that has this one now, from those that others had then and in the end."""
    now_N, end_N = np.array(others).T
    away_N, gained_N = now_N - now_N.mean(), end_N - now_N
    gained_N -= gained_N.mean()
    weight = max(float(gained_N.var()), 1e-18) / CLOSING_SPREAD**2
    spread = float(away_N @ away_N) + weight
    closing = (float(away_N @ gained_N) + weight * CLOSING) / spread
    left_N = gained_N - closing * away_N
    freedom = len(others) - 1
    variance = max(float(left_N @ left_N) / freedom, 1e-18)
    off = quality - float(now_N.mean())
    doubt = math.sqrt(variance * (1 + 1 / len(others) + off**2 / spread))
    return Forecast(float(end_N.mean()) + (1 + closing) * off, doubt, freedom)


def _at(curve: Curve, progress: float) -> float:
    """The quality of a curve at a progress, between its points."""
    return float(np.interp(progress, [point[0] for point in curve], [point[1] for point in curve]))
