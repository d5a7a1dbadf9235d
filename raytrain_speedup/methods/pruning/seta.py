"""SeTa: a random part of the data, in groups of rising loss, under a window that slides from easy to hard.

Zhou et al., "Scale Efficient Training for Large Datasets", CVPR 2025, https://arxiv.org/abs/2503.13385. Epoch t
draws a fraction 1 - r of the samples, sorts them into k groups by their last loss and shows, at weight 1, the w =
round(alpha k) groups

    g_s, ..., g_{s+w-1},   s = t mod (k - w + 1),

so that too easy and too hard samples take turns to be left out, and after the hardest window comes the easiest
again. The first epoch shows all groups; the last (1 - delta) of the run a random fraction 1 - r of all data
(partial annealing). The paper claims up to half the cost at no loss on sets of over three million samples, and
little loss at 70 %; on CIFAR-10 (its Table 2) it re-measures InfoBatch as not lossless at equal epochs.

Ours differs in the groups: quantiles of the loss, of equal size, in the place of k-means on it. That needs two
partitions and no loop over N, and makes the saving known beforehand (with `saving`, r is solved for); the paper's
groups are of unequal size, the easy ones mostly the largest. Defaults are those of the authors' CIFAR script: r =
.1, k = 5, w = 4. A sample without a (finite) loss counts as the hardest, ties are drawn.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.base import TOLERANCE
from raytrain_speedup.methods.pruning.scored import ScoredPruner, ScoreSettings
from raytrain_speedup.methods.pruning.selection import Selection, easiest, only
from raytrain_speedup.methods.pruning.timetable import Timetable
from raytrain_speedup.methods.pruning.unscaled import UnscaledPruner, UnscaledSettings
from raytrain_speedup.settings import UserError


class SeTaSettings(UnscaledSettings, ScoreSettings):
    """SeTa (CVPR 2025): a window over groups of equal loss, from easy to hard, not rescaled."""

    method: Literal["seta"] = Field("seta", description="SeTa.")
    prune_ratio: float | None = Field(
        0.1, ge=0, lt=1, description="Fraction of all samples that goes at random, before groups are made."
    )
    anneal_from: float = Field(
        0.875, ge=0, le=1, description="Progress from which there is no window (the paper's delta)."
    )
    groups: int = Field(5, ge=1, description="How many groups of rising loss there are (the paper's k).")
    window: float = Field(
        0.8, gt=0, le=1, description="Fraction of the groups that an epoch shows (the paper's alpha)."
    )

    @property
    def width(self) -> int:
        """How many groups an epoch shows: w, at least one."""
        return max(1, round(self.groups * self.window))

    def _pruner(self) -> type[SeTa]:
        return SeTa


class SeTa(UnscaledPruner, ScoredPruner):
    """SeTa for one run: `SeTa(50_000, epochs=200, saving=0.5)`."""

    settings_class = SeTaSettings
    settings: SeTaSettings

    def _timetable(self, last_epoch_fraction: float) -> Timetable:
        """Every epoch from `prune_from` on drops some; those before `anneal_from`, but the first, by the window."""
        how = self.settings
        self._windowed = Timetable.of(self.epoch_ends, how.prune_from, how.anneal_from, last_epoch_fraction)
        return Timetable.of(self.epoch_ends, how.prune_from, 1.0, last_epoch_fraction, from_the_start=True)

    def _refuse_if_out_of_reach(self) -> None:
        """Solve for the random part: saving = 1 - (full + drawn * (windowed * w / k + others)) / passes."""
        saving, how = self.settings.saving, self.settings
        self._drawn = 1 - (how.prune_ratio or 0.0)
        if saving is None:
            return
        passes, windowed = sum(self.timetable.fractions), self._windowed.pruned_passes()
        thinned = self.timetable.pruned_passes()
        shown = thinned - windowed * (1 - how.width / how.groups)
        least, most = (thinned - shown) / passes, thinned / passes
        if not least - TOLERANCE <= saving < most:
            raise UserError(
                f"pruning.saving: {saving} is out of reach; expected from {least:.4f}, which the window alone "
                f"saves ({how.width} of {how.groups} groups), to below {most:.4f}"
            )
        self._drawn = min(1.0, 1 - (saving * passes - (thinned - shown)) / shown)

    def _select(self, epoch: int) -> Selection:
        hardness, stats = self._hardness()
        everyone = np.ones(self.num_samples, dtype=np.bool_)
        count = max(1, round(self._drawn * self.num_samples))
        shown = draw.draw(everyone, count, draw.generator(self.seed, epoch, draw.SURVIVORS))
        if self._windowed.pruned[epoch]:
            groups, width = self.settings.groups, self.settings.width
            first = epoch % (groups - width + 1)
            start, stop = first * count // groups, (first + width) * count // groups
            ties = draw.generator(self.seed, epoch, draw.TIES)
            shown = easiest(hardness, shown, max(stop, start + 1), ties)
            shown &= ~easiest(hardness, shown, start, ties)
            stats["window"] = first
        return only(shown, stats, droppable=self._most_droppable())
