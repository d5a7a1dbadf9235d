"""What travels between the plan, the loader and the task: a `Step` goes in, a `Batch` comes out of a
`BatchSource`.

Batches come from files, a device's memory, a pool of synthetic images, or your own code. `BatchSource` is a
protocol, so that whoever fulfils it inherits nothing that it does not use. The loaders of files share theirs in
`loader.py`; the pool of a distillation is in `engine/pool_loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from raytrain_speedup import randomness
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.data.unreadable import Skipped
from raytrain_speedup.methods.curriculum.base import Stage

Batch = dict[str, Tensor]
"""Tensors by name, with a row for each of b samples. A sample that could not be read has none.

What a loader yields:
- `inputs`: (b, C, H, W) float, normalised, on the training device; or (b, L) int64 tokens
- `target`: (b,) int64 classes, or (b, H, W) at full size with `IGNORE_INDEX` where a pixel has none; or (b, M, 5)
  float32 boxes (`boxes.py`); or (b, L) int64 tokens with `NO_LABEL` where none is learnt
- `length`: of tokens alone, (b,) int64 on the CPU: how many of a row are the sample, the rest being padding
- `index`: (b,) int64, position in the training set
- `weight`: (b,) float32, the pruning weight

What the engine adds before a task sees it:
- `draws`: (b,) int64, keys whatever the task draws: `randomness.bits(batch["draws"], seed=0, epoch=0, streams=...)`
- `mixed_target`, `fraction`: of a batch that is mixed, the target of what was mixed into each input, (b,) or
  (b, H, W), and the fraction of the input that is its own, (b,) float64
"""

AnySplit = Literal["train", "val", "test"]

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
    keys = randomness.words(index, seed=seed, epoch=epoch, streams=(0,))[0]
    times = step.stage.replay
    if times == 1:
        return keys
    part = torch.arange(len(index), device=index.device) // max(1, len(index) // times)
    return randomness.words(keys + part, seed=step.number, epoch=epoch, streams=(1,))[0]


def evaluation_keys(index: Tensor) -> Tensor:
    """The row `draws` of samples that are evaluated: the same in every evaluation of every run."""
    return randomness.words(index, seed=0, epoch=EVALUATION, streams=(0,))[0]


def blank(batch: Batch) -> Batch:
    """Two images (batch normalisation may refuse one) of a batch's shape that weigh nothing, for a batch without
    any; its index stays empty."""
    return {
        key: tensor if key == "index" else tensor.new_zeros((2, *tensor.shape[1:]))
        for key, tensor in batch.items()
    }


class BatchSource(Protocol):
    """Batches of steps and splits, for one worker.

    Attributes:
        name: what brings the batches, for people; runs are compared only where this is equal.
        splits: what the batches are of.
        size: of an input at full resolution, in pixels; of a row of tokens its length.
    """

    name: str
    splits: Splits
    size: int

    @property
    def has_val(self) -> bool:
        """Whether there is anything to validate on."""

    @property
    def skipped(self) -> Mapping[str, Skipped]:
        """For each split, how many samples could not be read so far (`count`) and the first `names`."""

    def prepare(self, epoch: int) -> Iterator[None]:
        """Do what has to be done before an epoch's batches, in parts between which the run may stop."""

    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        """One augmented batch for each step, in order. To resume within an epoch pass the steps left.

        Raises:
            UserError: if too many samples cannot be read.
        """

    def eval_batches(self, split: AnySplit, *, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        """This rank's part of a split, every sample with weight 1; `index` is its position in the split.

        Args:
            split: which; training samples are shown as the others are, without augmentation.
            batch_size: samples of a batch.
            most: samples of all ranks at most, evenly taken from the split; by default all.

        Raises:
            UserError: if too many samples cannot be read.
        """

    def unnormalised(self, x: Tensor) -> Tensor:
        """Inputs (b, C, H, W) as uint8 images again, for people."""

    def images(self) -> dict[str, bytes]:
        """What is worth looking at after an evaluation: PNG files by name."""

    def metrics(self) -> dict[str, float]:
        """What is worth reporting after an epoch."""

    def spent_flops(self) -> float:
        """FLOPs that making batches took, over all ranks, since this was last asked; reading data takes none."""

    def bytes_taken(self) -> int | None:
        """Bytes that this rank's training batches took from where the samples lie, since this was last asked: from
        files or a store, not from a cache. None where they are not counted."""

    def state_dict(self) -> dict[str, Any]:
        """What later batches depend on and this rank alone knows."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""

    def join(self, state: Mapping[str, Any]) -> None:
        """Take up what is common to all ranks from the state of rank 0: this rank was not there before."""

    def close(self) -> None:
        """End what runs beside the training. It cannot be used afterwards."""
