"""OrderDP: a random subset, and of it the samples with the highest losses.

Jin et al., "OrderDP: A Theoretically Guaranteed Lossless Dynamic Data Pruning Framework", ICLR 2026,
https://arxiv.org/abs/2606.08574. Every epoch draws s of the N samples uniformly and trains on the q of them with
the highest last losses, at weight 1. The sample whose loss ranks j-th is then shown with probability

    P(j) = sum_{l=1}^{q} C(j-1, l-1) C(N-j, s-l) / C(N, s),

so an epoch's mean loss is an unbiased estimate of the surrogate sum_j P(j) loss_(j) / q: of that, not of the mean
loss of all data. The paper claims competitive accuracy on CIFAR-10, CIFAR-100 and ImageNet-1K at over 40 % less
cost, and an exact saving; its experiments use s / N = .75 and q / s = .85 from the first epoch to the last.

Ours differs in how the amounts are said: `prune_ratio` (or `saving`) is 1 - q / N, and `random_fraction` the share
of the dropped that goes at random, (N - s) / (N - q), so that any saving can be asked for; the defaults are those
.75 and .85. A sample without a (finite) loss ranks above all others, and ties are drawn: the first epoch is a
random subset, as in the authors' code, and what it left out is shown first in the second.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.scored import ScoredPruner, ScoreSettings
from raytrain_speedup.methods.pruning.selection import Selection, easiest, only
from raytrain_speedup.methods.pruning.unscaled import UnscaledPruner, UnscaledSettings


class OrderDPSettings(UnscaledSettings, ScoreSettings):
    """OrderDP (ICLR 2026): of a random subset the samples with the highest losses, not rescaled."""

    method: Literal["orderdp"] = Field("orderdp", description="OrderDP.")
    prune_ratio: float | None = Field(
        0.3625, ge=0, lt=1, description="Fraction of all samples that a pruned epoch does not show."
    )
    random_fraction: float = Field(
        0.69, ge=0, le=1, description="Of the samples dropped, fraction that is dropped before losses count."
    )

    def _pruner(self) -> type[OrderDP]:
        return OrderDP


class OrderDP(UnscaledPruner, ScoredPruner):
    """OrderDP for one run: `OrderDP(50_000, epochs=200, saving=0.4)`."""

    settings_class = OrderDPSettings
    settings: OrderDPSettings

    def _select(self, epoch: int) -> Selection:
        hardness, stats = self._hardness()
        drop = self._drop_count(epoch)
        at_random = round(self.settings.random_fraction * drop)
        everyone = np.ones(self.num_samples, dtype=np.bool_)
        survivors = draw.generator(self.seed, epoch, draw.SURVIVORS)
        drawn = draw.draw(everyone, self.num_samples - at_random, survivors)
        ties = draw.generator(self.seed, epoch, draw.TIES)
        shown = drawn & ~easiest(hardness, drawn, drop - at_random, ties)
        return only(shown, {**stats, "dropped": drop}, droppable=self._most_droppable())
