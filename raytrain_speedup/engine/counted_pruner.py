"""A pruner whose plans are counted: how many sample passes a training loop of the user's own was to make."""

from __future__ import annotations

from raytrain_speedup.methods.pruning import Pruner
from raytrain_speedup.methods.pruning.base import EpochPlan
from raytrain_speedup.methods.pruning.wrapped import WrappedPruner


class CountedPruner(WrappedPruner):
    """A pruner that remembers how many samples each epoch showed.

    Attributes:
        kept: samples by epoch, of those that were planned.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.kept: dict[int, int] = {}

    def _plan(self, epoch: int) -> EpochPlan:
        plan = super()._plan(epoch)
        self.kept[epoch] = plan.kept
        return plan
