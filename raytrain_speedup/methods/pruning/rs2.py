"""RS2: a fresh random subset in every epoch, and nothing to make up for the rest.

Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024,
https://arxiv.org/abs/2305.18424. Epoch t trains on S_t, r N samples drawn uniformly from all N, at weight 1, and
the learning rate anneals over these shorter epochs. The paper claims that this reaches an accuracy in less time
than every pruning and distillation method it compares with (on ImageNet with less than a tenth of the data an
epoch, by up to 29 points at a seventh of the time), so it is the control that a method which looks at losses has
to beat. There is no claim of losslessness.

Ours is the form with replacement between epochs. Without it, the passes of a shorter run dealt out over the
epochs of a loop, it is `epochs` in a plain loop. `random` (of this package) differs by its weights, which
sum to N, by a full first epoch and by annealing on all data; a mean loss of weight 1 / (1 - r) is a learning rate
that is larger by as much.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.selection import Selection, only
from raytrain_speedup.methods.pruning.unscaled import UnscaledPruner, UnscaledSettings


class RS2Settings(UnscaledSettings):
    """RS2 (ICLR 2024): a fresh random subset in every epoch, not rescaled."""

    method: Literal["rs2"] = Field("rs2", description="RS2.")

    def _pruner(self) -> type[RS2]:
        return RS2


class RS2(UnscaledPruner):
    """Repeated random sampling: `RS2(50_000, epochs=200, prune_ratio=0.9)`."""

    settings_class = RS2Settings

    def _select(self, epoch: int) -> Selection:
        drop = self._drop_count(epoch)
        everyone = np.ones(self.num_samples, dtype=np.bool_)
        shown = draw.draw(everyone, self.num_samples - drop, draw.generator(self.seed, epoch, draw.SURVIVORS))
        return only(shown, {"dropped": drop}, droppable=self._most_droppable())
