"""What travels between the plan, the loader and the task: a `Step` goes in, a `Batch` comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raytrain_speedup.data import noise
from raytrain_speedup.methods.curriculum.base import Stage

Batch = dict[str, Tensor]
"""Tensors by name, with a row for each of b samples. A sample that could not be read has none.

What a loader yields:
- `inputs`: (b, C, H, W) float, normalised, on the training device
- `target`: (b,) int64 classes, or (b, H, W) at full size with `IGNORE_INDEX` where a pixel has none
- `index`: (b,) int64, position in the training set
- `weight`: (b,) float32, the pruning weight

What the engine adds before a task sees it:
- `draws`: (b,) int64, keys whatever the task draws: `noise.bits(batch["draws"], seed=0, epoch=0, streams=...)`
- `mixed_target`, `fraction`: of a batch that is mixed, the target of what was mixed into each input, (b,) or
  (b, H, W), and the fraction of the input that is its own, (b,) float64
"""

EVALUATION = -1
"""Stands for the epoch in the draws of an evaluation."""

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


def draw_keys(index: Tensor, step: Step, *, seed: int, epoch: int) -> Tensor:
    """The row `draws` of a batch for `step` that shows the samples `index` (b,).

    A function of seed, epoch and sample alone; where a stage shows samples again, also of the step and of how many
    times the sample has come in it.
    """
    keys = noise.words(index, seed=seed, epoch=epoch, streams=(0,))[0]
    times = step.stage.replay
    if times == 1:
        return keys
    part = torch.arange(len(index), device=index.device) // max(1, len(index) // times)
    return noise.words(keys + part, seed=step.number, epoch=epoch, streams=(1,))[0]


def evaluation_keys(index: Tensor) -> Tensor:
    """The row `draws` of samples that are evaluated: the same in every evaluation of every run."""
    return noise.words(index, seed=0, epoch=EVALUATION, streams=(0,))[0]


def blank(batch: Batch) -> Batch:
    """Two images (batch normalisation may refuse one) of a batch's shape that weigh nothing, for a batch without
    any; its index stays empty."""
    return {
        key: tensor if key == "index" else tensor.new_zeros((2, *tensor.shape[1:]))
        for key, tensor in batch.items()
    }
