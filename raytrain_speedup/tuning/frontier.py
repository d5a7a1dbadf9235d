"""A sampler for the cheapest lossless setting: tries points where lossless ends.

Cost and quality are not alike. The cost of a setting is measured almost exactly and changes smoothly, so a few
trials tell it everywhere; the quality of one run carries noise as large as the margin. So each has a Gaussian
process of its own, and a trial is Thompson's choice (1933; under constraints Eriksson & Poloczek 2021): of one
surface of the quality, drawn from what is believed, the cheapest point that reaches the bound. The bound is drawn
too, for the baseline was seen over a few seeds only: what is tried spreads over the bounds that are likely. Points
that are drawn need no talk of what is under way, so any number of trials may run at a time.

What was tried beside it (tests/benchmarks/results/cpu-search.md): constrained expected improvement returns to the
one bound that it believes in, and misses the optimum where the baseline was lucky. Constrained TPE needs no model,
comes near as soon, and leaves a dearer setting to be proven.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from scipy.stats import norm, qmc

from raytrain_speedup.tuning.encoding import Space, encode, settings_at, snapped, width
from raytrain_speedup.tuning.objective import Level
from raytrain_speedup.tuning.proof import Proof, ladder
from raytrain_speedup.tuning.surrogate import Array, GaussianProcess

QUALITY, COST, DOUBT, FAILED, UNUSED = "quality", "cost", "doubt", "failed", "unused"
"""Attributes of a trial: the final quality, measured or forecast, larger is better; the cost of a whole run; the
standard deviation of a forecast; whether it could not be run; parameters that its settings do not have."""

CANDIDATES, NEAR, KEPT = 1500, 600, 300
NEAR_BEST = 4
COST_NOISE = 0.02  # of the cost
CHANCE_WORTH = 0.02
"""Candidates with a smaller chance to reach the bound are looked at only where there are no others."""


@dataclass(frozen=True)
class Rehearsal:
    """What the last trials of a search are for: to try what would be confirmed.

    Attributes:
        count: of the settings that are confirmed; `place` of the one among them.
    """

    proof: Proof
    count: int
    place: int


@dataclass(frozen=True)
class Bound:
    """The quality that is asked for: the baseline's less the margin."""

    level: Level
    margin: float

    @property
    def quality(self) -> float:
        return self.level.mean - self.margin

    def softened(self, quality_N: Array) -> Array:
        """Qualities with what lies far below drawn near: how bad a bad setting is tells nothing of where lossless
        ends, and a cliff makes a stationary surface of everything else."""
        below_N = np.maximum(self.quality - 2 * self._unit - quality_N, 0.0)
        return np.where(
            below_N > 0,
            self.quality - 2 * self._unit - self._unit * np.log1p(below_N / self._unit),
            quality_N,
        )

    @property
    def failure(self) -> float:
        """What a setting that cannot be run counts as."""
        return self.quality - 4 * self._unit

    @property
    def noise(self) -> float:
        """Of one run, before any was repeated: margins are chosen so that they exceed it."""
        return 0.6 * self._unit

    @property
    def _unit(self) -> float:
        return max(self.margin, 1e-3 * max(1.0, abs(self.level.mean)))


class Beliefs:
    """What trials say of quality and cost.

    Args:
        space: name: distribution.
        trials: those of `told`, some of which have a cost.
        bound: what is asked for.
    """

    def __init__(self, space: Space, trials: Sequence[FrozenTrial], bound: Bound) -> None:
        self.space, self.bound = space, bound
        self.x_ND = encode(space, [active(trial) for trial in trials])
        quality_N = np.array([trial.user_attrs.get(QUALITY, bound.failure) for trial in trials])
        doubt_N = np.array([trial.user_attrs.get(DOUBT, 0.0) for trial in trials])
        # A forecast is of what would be measured, so the noise of a run is in its doubt already.
        extra_N = np.maximum(doubt_N**2 - bound.noise**2, 0.0)
        self.quality = GaussianProcess(
            self.x_ND, bound.softened(quality_N), noise=bound.noise, extra_N=extra_N
        )
        cost_N = np.array([trial.user_attrs.get(COST, math.nan) for trial in trials])
        known_N = np.isfinite(cost_N)
        noise = COST_NOISE * float(np.abs(cost_N[known_N]).mean())
        self._cost = GaussianProcess(self.x_ND[known_N], cost_N[known_N], noise=noise, sure=True)

    def cost(self, x_MD: Array) -> Array:
        """What points cost."""
        return self._cost.predict(x_MD)[0]

    def believed(self, settings: Sequence[Mapping[str, Any]]) -> list[float]:
        """The quality of settings, by the names of the space."""
        mean_M, _ = self.quality.predict(encode(self.space, settings))
        return [float(value) for value in mean_M]

    def chances(self, x_MD: Array, proof: Proof) -> Array:
        """That points are proven lossless."""
        mean_M, deviation_M = self.quality.predict(x_MD)
        doubt_M = np.hypot(deviation_M, self.level_deviation)
        return proof.chance(mean_M - self.bound.quality, doubt_M, self.quality.noise)

    def proven(self, settings: Sequence[Mapping[str, Any]], proof: Proof) -> list[float]:
        """The chances of settings, by the names of the space."""
        return [float(chance) for chance in self.chances(encode(self.space, settings), proof)]

    @property
    def baseline_cost(self) -> float:
        """That of the baseline; where it is not known that of the dearest trial."""
        known = self.bound.level.cost
        return known if math.isfinite(known) else float(self.cost(self.x_ND).max())

    @property
    def level_deviation(self) -> float:
        """Of the baseline's mean."""
        return self.quality.noise / math.sqrt(self.bound.level.seeds)


class FrontierSampler(optuna.samplers.BaseSampler):
    """See the module. Before there is a baseline, and for the first trials, points spread evenly (Sobol).

    Args:
        space: what is searched.
        seed: of this suggestion.
        first: of the even points, which belong together: the same for a whole search.
        number: of the suggestion, from 1.
        startup: trials that have come to an end before any is believed in.
        bound: what is asked for; None before there is a baseline.
        rehearsal: of the confirmation, in place of a search for the end of lossless.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        first: int,
        number: int,
        startup: int,
        bound: Bound | None,
        rehearsal: Rehearsal | None = None,
    ) -> None:
        self._space, self._random = dict(space), np.random.default_rng(seed)
        self._rehearsal = rehearsal
        self._first, self._number, self._startup, self._bound = first, number, startup, bound

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        tried = told(study.get_trials(deepcopy=False))
        costs = sum(COST in trial.user_attrs for trial in tried)
        if self._bound is None or not costs or len(tried) < self._startup:
            even = qmc.Sobol(width(self._space), rng=self._first).random(_power_of_two(self._number))
            return settings_at(self._space, snapped(self._space, even)[self._number - 1])
        beliefs = Beliefs(self._space, tried, self._bound)
        if self._rehearsal is not None:
            return settings_at(self._space, self._rehearsed(beliefs, self._rehearsal))
        return settings_at(self._space, self._choice(beliefs))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise NotImplementedError(f"{param_name} is not searched")

    def _choice(self, beliefs: Beliefs) -> Array:
        """The cheapest candidate that one drawn surface lets reach one drawn bound."""
        bound = beliefs.bound.quality + beliefs.level_deviation * self._random.standard_normal()
        believed_N, _ = beliefs.quality.predict(beliefs.x_ND)
        order_N = _cheapest(beliefs.cost(beliefs.x_ND), believed_N >= bound, believed_N)
        points_MD = self._candidates(beliefs, order_N)
        mean_M, deviation_M = beliefs.quality.predict(points_MD)
        cost_M = beliefs.cost(points_MD)
        chance_M = norm.cdf((mean_M - bound) / deviation_M)
        kept = _cheapest(cost_M, chance_M > CHANCE_WORTH, chance_M)[:KEPT]
        drawn = beliefs.quality.draw(points_MD[kept], self._random)
        reaching = drawn >= bound
        best = np.where(reaching, cost_M[kept], np.inf).argmin() if reaching.any() else drawn.argmax()
        return points_MD[kept][best]

    def _rehearsed(self, beliefs: Beliefs, rehearsal: Rehearsal) -> Array:
        """One of the candidates that would be confirmed."""
        tried_N = beliefs.chances(beliefs.x_ND, rehearsal.proof)
        worth_N = tried_N * (beliefs.baseline_cost - beliefs.cost(beliefs.x_ND))
        points_MD = self._candidates(beliefs, np.argsort(-worth_N))
        chance_M = beliefs.chances(points_MD, rehearsal.proof)
        cost_M = beliefs.cost(points_MD)
        found = ladder(cost_M, chance_M, baseline=beliefs.baseline_cost, count=rehearsal.count)
        return points_MD[found[rehearsal.place % len(found)] if found else int(chance_M.argmax())]

    def _candidates(self, beliefs: Beliefs, order_N: NDArray[np.intp]) -> Array:
        """Anywhere, and around the first of those tried in this order."""
        best = np.resize(order_N[:NEAR_BEST], NEAR)
        size = (NEAR, beliefs.x_ND.shape[1])
        away = self._random.normal(0, 0.08, size) * self._random.choice([1, 0.3], (NEAR, 1))
        anywhere = self._random.random((CANDIDATES, size[1]))
        return snapped(self._space, np.concatenate([anywhere, beliefs.x_ND[best] + away]))


def _cheapest(cost_N: Array, good_N: NDArray[np.bool_], nearness_N: Array) -> NDArray[np.intp]:
    """An order: the good ones by their cost, then the others by how near they come."""
    return np.lexsort((np.where(good_N, cost_N, -nearness_N), ~good_N))


def active(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial's settings have."""
    unused = trial.user_attrs.get(UNUSED, ())
    return {key: value for key, value in trial.params.items() if key not in unused}


def told(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that something was learnt of."""
    return [trial for trial in trials if QUALITY in trial.user_attrs or FAILED in trial.user_attrs]


def _power_of_two(number: int) -> int:
    """The smallest one that is not below: Sobol's points are even in such numbers."""
    return 1 << max(0, number - 1).bit_length()
