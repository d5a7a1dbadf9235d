"""Dynamic random pruning: drop a fresh random part of all samples in every epoch, and rescale the rest.

A control: what InfoBatch has to beat at equal measured compute. Same rescaling, warm-up and annealing, but no
look at the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.scheduled import (
    MAX_DROP,
    ScheduledPruner,
    ScheduledSettings,
    Selection,
    drop_count,
    thin,
)


class DynamicRandomSettings(ScheduledSettings):
    """Control: every pruned epoch drops a random part of all samples and rescales the rest."""

    method: Literal["random"] = Field("random", description="Dynamic random pruning.")

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        last_epoch_share: float = 1.0,
    ) -> DynamicRandom:
        """See `PrunerSettings.build`."""
        return DynamicRandom(
            num_samples,
            epoch_ends,
            seed=seed,
            device=device,
            last_epoch_share=last_epoch_share,
            **self.model_dump(),
        )


class DynamicRandom(ScheduledPruner):
    """Dynamic random pruning: `DynamicRandom(50_000, epochs=200, prune_ratio=0.5)`."""

    settings_class = DynamicRandomSettings

    def _select(self, epoch: int) -> Selection:
        if self.settings.saving is None:
            drop = drop_count(self.settings.prune_ratio or 0.0, self.num_samples)
        else:
            drop = min(self._drop_for_saving(epoch, self.settings.saving), self._most_droppable())
        everyone = np.ones(self.num_samples, dtype=np.bool_)
        stats = {"eligible": self.num_samples, "dropped": drop}
        return thin([(everyone, drop)], stats, draw.generator(self.seed, epoch, draw.SURVIVORS))

    def _most_droppable(self) -> int:
        return int(MAX_DROP * self.num_samples)
