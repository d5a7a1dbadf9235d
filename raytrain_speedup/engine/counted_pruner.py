"""A pruner whose plans are counted: how many sample passes a training loop of the user's own was to make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raytrain_speedup.methods.pruning import Pruner
from raytrain_speedup.methods.pruning.base import EpochPlan


class CountedPruner(Pruner):
    """A pruner that remembers how many samples each epoch showed.

    Attributes:
        kept: samples by epoch, of those that were planned.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner.num_samples, pruner.epoch_ends, seed=pruner.seed)
        self.kept: dict[int, int] = {}
        self._pruner = pruner

    def _plan(self, epoch: int) -> EpochPlan:
        plan = self._pruner.plan(epoch)
        self.kept[epoch] = plan.kept
        return plan

    def describe(self, features: Tensor) -> None:
        self._pruner.describe(features)

    def observe(self, index: Tensor, loss: Tensor) -> None:
        self._pruner.observe(index, loss)

    def stratify(self, index: Tensor, strata: Tensor) -> None:
        self._pruner.stratify(index, strata)

    def exchange(self) -> None:
        self._pruner.exchange()

    def state_dict(self) -> dict[str, Any]:
        return self._pruner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pruner.load_state_dict(state)
