"""From epochs of compute to epochs of samples: where in the budget each step of a run lies, in closed form.

Progress in [0, 1] is the fraction spent of a budget of `epochs` passes over the data at full size. While a
sample costs only a fraction of that, the budget lasts for more passes. Within a stage every sample costs the
same, so progress is piecewise linear in the passes made, and its value at any step takes one interpolation:
nothing is accumulated step by step, and the last step ends at exactly 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from raytrain_speedup.methods.curriculum.base import Stage

FloatArray = NDArray[np.float64]


class Budget:
    """The epochs that a budget buys under a curriculum.

    An epoch is one pass over the data set. A pruned sample counts as shown. Where a stage replays its
    samples, each is read once and paid for `replay` times, so the budget lasts for that many fewer passes.

    Args:
        epochs: the budget, in passes over the data at full size; need not be whole.
        num_samples: N, the size of the data set.
        stages: of the curriculum, in order; the last one ends at 1.

    Attributes:
        num_epochs: passes the budget buys; the last one is cut short where this is no whole number.
        last_epoch_fraction: fraction in (0, 1] of the last pass that is still paid for.
    """

    def __init__(self, epochs: float, num_samples: int, stages: Sequence[Stage]) -> None:
        self.epochs = epochs
        self.num_samples = num_samples
        self.stages = tuple(stages)
        self._ends: FloatArray = np.array([0.0] + [stage.ends_at for stage in stages])
        per_pass = np.array([stage.cost * stage.replay for stage in stages])
        passes = np.cumsum(np.diff(self._ends) * epochs / per_pass)
        # To 1e-9 of an epoch, or a budget of 200 would be rounded up to 201 epochs for one bit too many.
        self._passes: FloatArray = np.concatenate([[0.0], passes.round(9)])
        self.num_epochs = float(self._passes[-1])
        whole = np.arange(1, math.ceil(self.num_epochs) + 1)
        self._epoch_ends: list[float] = np.interp(whole, self._passes, self._ends).tolist()
        self.last_epoch_fraction = self.num_epochs - (math.ceil(self.num_epochs) - 1)

    @overload
    def progress(self, epoch: int, fraction: float) -> float: ...
    @overload
    def progress(self, epoch: int, fraction: FloatArray) -> FloatArray: ...
    def progress(self, epoch: int, fraction: float | FloatArray) -> float | FloatArray:
        """Fraction of the budget that is spent `fraction` of a full pass into `epoch`; 1 from its end on."""
        at = np.interp(epoch + np.asarray(fraction), self._passes, self._ends)
        return at if isinstance(fraction, np.ndarray) else float(at)

    def epoch_ends(self) -> list[float]:
        """The progress at the end of each epoch; the last one is 1."""
        return self._epoch_ends

    def stage_at(self, progress: float) -> Stage:
        """The stage of a step that begins at `progress`."""
        position = bisect_right(self._ends, progress) - 1
        return self.stages[min(position, len(self.stages) - 1)]

    def samples_shown(self) -> list[float]:
        """How many samples each stage shows, replayed and pruned ones included."""
        replay = np.array([stage.replay for stage in self.stages])
        shown: list[float] = (np.diff(self._passes) * replay * self.num_samples).tolist()
        return shown
