"""Full data in every epoch: no pruning, and the control that saves by fewer epochs instead.

Fewer epochs of full data at the same compute is the simplest way to save, and the second control a pruning
method has to beat. Its plans are full; `budget_factor` shortens the run, and since the learning rate follows
progress, the shorter run anneals as the long one does.

A plain loop decides itself how many epochs it makes, and its learning rate follows them. There the passes of
the shorter run are dealt out over all epochs of the loop, so the same samples are shown in the same order, the
saving is kept, and the learning rate anneals. (Random subsets without replacement over epochs, not rescaled, are
the control RS2 of Okanovic et al., ICLR 2024, https://arxiv.org/abs/2305.18424; with replacement it is `rs2`.)
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
        device: torch.device | str | None = None,
        last_epoch_fraction: float = 1.0,
    ) -> FullData:
        """See `PrunerSettings.build`."""
        return FullData(num_samples, epoch_ends, seed=seed)


class FewerEpochsSettings(NoPruningSettings):
    """Control: full data, but fewer epochs at the same compute."""

    method: Literal["epochs"] = Field("epochs", description="Fewer epochs.")  # type: ignore[assignment]
    saving: float = Field(
        0.3, ge=0, lt=1, description="Fraction of epochs, and so of sample passes, to save."
    )

    def budget_factor(self) -> float:
        """1 - saving: the fraction of the budgeted epochs that is run."""
        return 1.0 - self.saving

    def build_for_loop(
        self, num_samples: int, epochs: int, *, seed: int, device: torch.device | str | None = None
    ) -> FewerEpochs:
        """See `PrunerSettings.build_for_loop`."""
        return FewerEpochs(num_samples, epochs, seed=seed, saving=self.saving)


class FullData(Pruner):
    """Shows every sample in every epoch, in the order any pruner of this seed gives an unpruned epoch."""

    def _plan(self, epoch: int) -> EpochPlan:
        return full_pass(self.num_samples, self.seed, epoch)


class FewerEpochs(Pruner):
    """The passes of a shorter run, dealt out over the epochs of a loop.

    With a saving of .3, 10 epochs show .7 N samples each: 7 passes, the samples of 7 epochs of `FullData` in
    their order. An epoch that spans two passes may show a sample at the end of one and in the next.

    Args:
        num_samples, epochs, seed: see `Pruner`.
        saving: fraction of the sample passes of the loop that is not shown.
    """

    def __init__(self, num_samples: int, epochs: int, *, seed: int = 0, saving: float) -> None:
        super().__init__(num_samples, epochs, seed=seed)
        self.samples_shown = (1 - saving) * epochs * num_samples

    def _plan(self, epoch: int) -> EpochPlan:
        begin = self.epoch_ends[epoch - 1] if epoch else 0.0
        start, stop = (round(at * self.samples_shown) for at in (begin, self.epoch_ends[epoch]))
        parts = [torch.empty(0, dtype=torch.int64)]
        for number in range(start // self.num_samples, -(-stop // self.num_samples)):
            before = number * self.num_samples
            order = full_pass(self.num_samples, self.seed, number).indices
            parts.append(order[max(start - before, 0) : stop - before])
        indices = torch.cat(parts)
        return EpochPlan(indices, torch.ones(1).expand(len(indices)), self.num_samples, rescale="none")


def full_pass(num_samples: int, seed: int, number: int) -> EpochPlan:
    """All samples at weight 1, shuffled."""
    return draw.shuffled_plan(num_samples, None, (), draw.generator(seed, number, draw.ORDER), {})
