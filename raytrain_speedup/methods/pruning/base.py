"""What a pruning method is: a plan before the epoch, observations during it, one exchange after it.

    for epoch in range(epochs):
        plan = pruner.plan(epoch)
        for index, weight in plan.batches(128):
            losses = criterion(model(inputs[index]), target[index])   # one loss per sample
            pruner.observe(index, losses.detach())
            (losses * weight).mean().backward()
            ...
        pruner.exchange()                                             # does nothing on one worker

Index and weight travel with the sample, so look-ahead in a loader cannot mix them up, and nothing is
patched. A method is a settings class (what the experiment file says) and a pruner (what the loop talks to).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raytrain_speedup.settings import Settings


@dataclass(frozen=True)
class EpochPlan:
    """Which samples an epoch shows, in which order, and how much each one counts.

    Attributes:
        indices: (M,) int64 on the CPU, positions in the data set, shuffled; each at most once.
        weights: (M,) float32 on the CPU; they sum to `num_samples` (exactly, before rounding to float32).
        num_samples: N, the size of the data set.
        stats: figures for the log, such as `threshold`, `eligible` and `nonfinite` (counts are ints).
    """

    indices: Tensor
    weights: Tensor
    num_samples: int
    stats: Mapping[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """M, the number of samples shown."""
        return len(self.indices)

    @property
    def kept_share(self) -> float:
        """M / N."""
        return self.kept / self.num_samples

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, weights) of one batch after another, for a plain loop on one worker."""
        yield from zip(self.indices.split(batch_size), self.weights.split(batch_size), strict=True)


class Pruner(ABC):
    """Decides before every epoch which samples it shows.

    Args:
        num_samples: N, the size of the data set.
        epoch_ends: the progress in (0, 1] at which each epoch ends; `equal_epochs(200)` for a plain loop.
        seed: the randomness of epoch e is a function of (seed, e) alone; no global generator is touched.
        device: where `observe` is called with tensors, so that observing never waits for the device.
        last_epoch_share: the share of the last epoch's plan that is shown before progress reaches 1; below 1
            where a curriculum's steps do not divide the budget. Only a requested `saving` looks at it.
    """

    num_samples: int
    epoch_ends: Sequence[float]

    @abstractmethod
    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch: a function of (state, seed, epoch), the same on every worker.

        What an epoch shows is settled when it is first planned: the same call in the middle of it, or after
        resuming there, gives the same plan again, whatever was observed meanwhile.
        """

    def observe(self, index: Tensor, loss: Tensor) -> None:  # noqa: B027 - most controls need no losses
        """Note the raw losses (float, (b,)) of the samples `index` (int64, (b,)) without a device sync."""

    def exchange(self) -> None:  # noqa: B027
        """Share what the workers observed: the epoch's one collective. Does nothing on one worker.

        Every worker has to call it. It may also be called within an epoch, before `state_dict`.
        """

    def state_dict(self) -> dict[str, Any]:
        """All state, keyed by sample and not by worker, so that another number of workers can load it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up the state of `state_dict`, whatever number of workers wrote it."""


class PrunerSettings(Settings):
    """What the experiment file says of a pruning method; `method` names it."""

    method: str

    def budget_factor(self) -> float:
        """How many full-data epochs are shown per budgeted epoch (below 1 only for `epochs`)."""
        return 1.0

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        last_epoch_share: float = 1.0,
    ) -> Pruner:
        """The pruner itself; the arguments are those of `Pruner`.

        Raises:
            UserError: if the settings can't be met on these epochs (a saving out of reach, say).
        """
        raise NotImplementedError


def equal_epochs(epochs: int) -> list[float]:
    """The progress at which each of `epochs` epochs of the same length ends."""
    return [(epoch + 1) / epochs for epoch in range(epochs)]
