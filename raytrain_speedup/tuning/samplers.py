"""The samplers that a search-space file can name."""

from __future__ import annotations

import warnings

import numpy as np
import optuna

from raytrain_speedup.tuning.encoding import Space
from raytrain_speedup.tuning.frontier import Bound, FrontierSampler, Rehearsal
from raytrain_speedup.tuning.sweep_settings import SweepSettings


def startup_trials(settings: SweepSettings) -> int:
    """Trials that have come to an end before any is believed in."""
    return min(10, max(4, settings.trials // 3))


def build_sampler(
    settings: SweepSettings,
    space: Space,
    number: int,
    bound: Bound | None,
    rehearsal: Rehearsal | None = None,
) -> optuna.samplers.BaseSampler:
    """The sampler for the suggestion of this number; what it knows is in the study.

    Args:
        space: what is searched.
        bound: the quality that is asked for, once it is known.
        rehearsal: that `frontier` suggests in place of a search.
    """
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    startup = startup_trials(settings)
    if settings.sampler == "frontier":
        return FrontierSampler(
            space,
            seed=seed,
            first=settings.seed,
            number=number,
            startup=startup,
            bound=bound,
            rehearsal=rehearsal,
        )
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if settings.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, settings.trials // 4)))
    with warnings.catch_warnings():  # some options are "experimental" since 2020
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=True,  # trials run at the same time must not be the same trial
            n_startup_trials=startup,
        )
