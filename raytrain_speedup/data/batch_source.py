"""Where a training loop gets its batches: files, a device's memory, a pool of synthetic images, or your own code.

A protocol, so that whoever fulfils it inherits nothing that it does not use. The loaders of files share theirs in
`loader.py`; the pool of a distillation is in `engine/pool_loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from raytrain_speedup.data.base import Splits
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.data.skipped import Skipped


class BatchSource(Protocol):
    """Batches of steps and splits, for one worker.

    Attributes:
        name: what brings the batches, for people; runs are compared only where this is equal.
        splits: what the batches are of.
        size: of an input at full resolution, in pixels.
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

    def eval_batches(self, split: Literal["val", "test"], *, batch_size: int) -> Iterator[Batch]:
        """This rank's part of a split, every sample with weight 1; `index` is its position in the split.

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

    def state_dict(self) -> dict[str, Any]:
        """What later batches depend on and this rank alone knows."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""

    def join(self, state: Mapping[str, Any]) -> None:
        """Take up what is common to all ranks from the state of rank 0: this rank was not there before."""

    def close(self) -> None:
        """End what runs beside the training. It cannot be used afterwards."""
