"""What methods share that show some of the data at weight 1 and let the rest be missing.

The mean loss of an epoch is then that of the samples shown: an estimate of the mean over all data where they are
drawn at random, and of another objective where they are chosen by their loss. No survivor stands for others, so
no cap on weights limits how much may be dropped, and a saving is met to the sample.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from raytrain_speedup.methods.pruning.base import Rescale
from raytrain_speedup.methods.pruning.scheduled import ScheduledPruner, ScheduledSettings


class UnscaledSettings(ScheduledSettings):
    """How much a method drops that does not rescale: from the first epoch to the last, unless told otherwise."""

    rescale: ClassVar[Rescale] = "none"
    from_the_start: ClassVar[bool] = True

    prune_ratio: float | None = Field(
        0.5, ge=0, lt=1, description="Fraction of all samples that a pruned epoch does not show."
    )
    anneal_from: float = Field(1.0, ge=0, le=1, description="Progress from which on all data is shown.")
    prune_from: float = Field(0.0, ge=0, le=1, description="Progress up to which all data is shown.")


class UnscaledPruner(ScheduledPruner):
    """A pruner whose pruned epochs drop an exact number of samples, and may drop all but one."""

    def _drop_count(self, epoch: int) -> int:
        """How many samples a pruned epoch does not show."""
        ratio, saving = self.settings.prune_ratio, self.settings.saving
        drop = (
            round((ratio or 0.0) * self.num_samples)
            if saving is None
            else self._drop_for_saving(epoch, saving)
        )
        return min(drop, self._most_droppable())

    def _most_droppable(self) -> int:
        return self.num_samples - 1
