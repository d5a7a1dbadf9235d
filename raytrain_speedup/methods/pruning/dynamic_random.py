"""Dynamic random pruning: drop a fresh random part of all samples in every epoch, and rescale the rest.

A control: what InfoBatch has to beat at equal measured compute. Same rescaling, warm-up and annealing, but no
look at the losses.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.scheduled import MAX_DROP, ScheduledPruner, ScheduledSettings
from raytrain_speedup.methods.pruning.selection import Selection, drop_count, thin


class DynamicRandomSettings(ScheduledSettings):
    """Control: every pruned epoch drops a random part of all samples and rescales the rest."""

    method: Literal["random"] = Field("random", description="Dynamic random pruning.")

    def _pruner(self) -> type[DynamicRandom]:
        return DynamicRandom


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
        survivors = draw.generator(self.seed, epoch, draw.SURVIVORS)
        return thin([(everyone, drop)], stats, survivors, droppable=self._most_droppable())

    def _most_droppable(self) -> int:
        return int(MAX_DROP * self.num_samples)
