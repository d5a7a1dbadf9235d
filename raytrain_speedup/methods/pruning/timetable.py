"""When a run drops samples, and how much of it that can save.

A saving is met by feedback: every pruned epoch drops what is still missing, spread evenly over the pruned
epochs that are left, so one epoch's shortfall is made up by the following ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

from raytrain_speedup.methods.pruning.base import TOLERANCE


@dataclass(frozen=True)
class Timetable:
    """Which epochs are pruned, and how many sample passes a run has.

    Attributes:
        fractions: (epochs,) fraction of each epoch's plan that is shown: 1, but perhaps for the last.
        pruned: (epochs,) whether the epoch may drop samples.
    """

    fractions: tuple[float, ...]
    pruned: tuple[bool, ...]

    @classmethod
    def of(
        cls,
        epoch_ends: Sequence[float],
        prune_from: float,
        anneal_from: float,
        last_epoch_fraction: float,
        *,
        from_the_start: bool = False,
    ) -> Timetable:
        """Read it off the ends of the epochs, in progress; nothing is known of a sample before epoch 1, so only
        a method that looks at no loss may prune `from_the_start`."""
        fractions = (1.0,) * (len(epoch_ends) - 1) + (last_epoch_fraction,)
        begins = (0.0 if from_the_start else -1.0, *epoch_ends)
        earliest, latest = prune_from - TOLERANCE, anneal_from + TOLERANCE
        return cls(
            fractions,
            tuple(
                begin >= earliest and end <= latest for begin, end in zip(begins, epoch_ends, strict=False)
            ),
        )

    def pruned_passes(self, first: int = 0) -> float:
        """Length of the pruned epochs from `first` on, in passes over the data."""
        return sum(compress(self.fractions[first:], self.pruned[first:]))

    def reachable_saving(self, most: float, dropped: Sequence[float] = ()) -> float:
        """The largest saving over the run if a pruned epoch drops at most the fraction `most` of all samples.

        Args:
            most: of the epochs to come.
            dropped: fraction of the samples each epoch up to now dropped.
        """
        return (self._saved(dropped) + most * self.pruned_passes(len(dropped))) / sum(self.fractions)

    def drop_fraction(self, saving: float, dropped: Sequence[float]) -> float:
        """Fraction of all samples that the next epoch, a pruned one, must drop to stay on course for `saving`.

        Args:
            saving: fraction of the run's sample passes to be saved.
            dropped: fraction of the samples each epoch up to now dropped.
        """
        missing = saving * sum(self.fractions) - self._saved(dropped)
        return max(0.0, missing / self.pruned_passes(len(dropped)))

    def _saved(self, dropped: Sequence[float]) -> float:
        """What the epochs up to now saved, in passes over the data."""
        return math.fsum(fraction * drop for fraction, drop in zip(self.fractions, dropped, strict=False))
