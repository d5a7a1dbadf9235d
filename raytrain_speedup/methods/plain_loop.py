"""Pruner and budget of a loop that is not this package's: from a schedule file, or in a training script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning import Pruner, PrunerSettings
from raytrain_speedup.settings import UserError


def loop_pruner(
    settings: PrunerSettings,
    num_samples: int,
    epochs: int | Budget,
    *,
    seed: int,
    device: torch.device | str | None = None,
) -> Pruner:
    """A pruner over `num_samples` samples for a loop of `epochs` epochs, or those of a budget.

    Raises:
        UserError: if there are no samples or epochs, or the saving is out of reach in so few of them.
    """
    if not isinstance(epochs, Budget):
        return settings.build_for_loop(num_samples, epochs, seed=seed, device=device)
    fraction, ends = epochs.last_epoch_fraction, epochs.epoch_ends()
    return settings.build(num_samples, ends, last_epoch_fraction=fraction, seed=seed, device=device)


def loop_budget(
    pruning: PrunerSettings, stages: Sequence[Stage], epochs: float, num_samples: int, *, replay: bool = False
) -> Budget:
    """What the compute of `epochs` full passes buys under the stages of a curriculum.

    Args:
        replay: whether the loop shows samples again where a stage says so.

    Raises:
        UserError: if there are no epochs or samples.
    """
    for name, value in {"epochs": epochs, "num_samples": num_samples}.items():
        if value <= 0:
            raise UserError(f"{name}: {value} is not allowed; expected more than 0")
    if not replay:
        stages = [replace(stage, replay=1) for stage in stages]
    return Budget(epochs * pruning.budget_factor(), num_samples, stages)
