"""A pruner around another one, which does all the work: for what is done to every plan, whoever makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner


class WrappedPruner(Pruner):
    """Does as the pruner in it does."""

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner.num_samples, pruner.epoch_ends, seed=pruner.seed)
        self._pruner = pruner

    def _plan(self, epoch: int) -> EpochPlan:
        return self._pruner.plan(epoch)

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
