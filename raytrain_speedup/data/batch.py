"""What travels between the plan, the loader and the loop: a `Step` goes in, a `Batch` comes out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raytrain_speedup.methods.curriculum.base import Stage

Batch = dict[str, Tensor]
"""What a loader yields. A sample that could not be read is absent from all four tensors.

- `inputs`: (b, C, H, W) float, normalised, on the training device
- `target`: (b,) int64 classes, or (b, H, W) at full size with `IGNORE_INDEX` where a pixel has none
- `index`: (b,) int64, position in the training set
- `weight`: (b,) float32, the pruning weight
"""

WARM_UP = -1
"""The number of a step that only warms things up: nothing of it may stay."""


@dataclass(frozen=True)
class Step:
    """One rank's part of one optimizer step, known before the epoch starts.

    Attributes:
        number: position in the epoch, from 0; the same on every rank.
        index: (b,) int64, the samples this rank reads.
        weight: (b,) float32, their weights.
        count: samples shown in this step on all ranks together, replayed ones included: the divisor of the
            step's mean loss.
        progress: fraction of the budget spent when the step begins, in [0, 1).
        stage: the curriculum stage the step belongs to.
    """

    number: int
    index: Tensor
    weight: Tensor
    count: int
    progress: float
    stage: Stage
