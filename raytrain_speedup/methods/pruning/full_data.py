"""Full data in every epoch: no pruning, and the control that saves by fewer epochs instead.

Fewer epochs of full data at the same compute is the simplest way to save, and the second control a pruning
method has to beat. Its plans are full; `budget_factor` shortens the run, and since the learning rate follows
progress, the shorter run anneals as the long one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner, PrunerSettings


class NoPruningSettings(PrunerSettings):
    """No pruning: every epoch shows all data at weight 1."""

    method: Literal["none"] = Field("none", description="No pruning.")

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        last_epoch_share: float = 1.0,
    ) -> FullData:
        """See `PrunerSettings.build`."""
        return FullData(num_samples, epoch_ends, seed=seed)


class FewerEpochsSettings(NoPruningSettings):
    """Control: full data, but fewer epochs at the same compute."""

    method: Literal["epochs"] = Field("epochs", description="Fewer epochs.")  # type: ignore[assignment]
    saving: float = Field(0.3, ge=0, lt=1, description="Share of epochs, and so of sample passes, to save.")

    def budget_factor(self) -> float:
        """1 - saving: the share of the budgeted epochs that is run."""
        return 1.0 - self.saving


class FullData(Pruner):
    """Shows every sample in every epoch, in the order any pruner of this seed gives an unpruned epoch."""

    def __init__(self, num_samples: int, epoch_ends: Sequence[float], *, seed: int = 0) -> None:
        self.num_samples = num_samples
        self.epoch_ends = epoch_ends
        self.seed = seed

    def plan(self, epoch: int) -> EpochPlan:
        """All samples, shuffled."""
        return draw.lay_out(self.num_samples, None, (), draw.generator(self.seed, epoch, draw.ORDER), {})
