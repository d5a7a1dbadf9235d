"""What every loader of files does: one batch for one step, each sample of an evaluation split once over all ranks.

It fulfils `BatchSource`; what a sample looks like is `appearance.py`'s business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from raytrain_speedup import randomness
from raytrain_speedup.data.appearance import Appearance
from raytrain_speedup.data.base import DataSettings, Source
from raytrain_speedup.data.batch import WARM_UP, AnySplit, Batch, Step
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.data.unreadable import Skipped, log
from raytrain_speedup.methods.curriculum.base import Kernel
from raytrain_speedup.methods.curriculum.replay import ReplayBuffer


class Loader(ABC):
    """Turns steps into batches on the training device.

    What a sample looks like is a function of (seed, epoch, sample) and the stage alone: not of the batch, the
    number of workers, or where the run was resumed. Where a stage shows samples again (`Stage.replay`), they
    come from a buffer of what this rank has read, and the step takes part in that function.

    Args:
        device: where batches are wanted.
        seed: of the augmentation.
        rank, world: this worker among all; evaluation splits are shared out by them.
        channels_last: memory format of the inputs.
        kernel: how the bandwidth of a batch is lowered to that of the curriculum's stage.

    Attributes:
        name: what brings the batches, for people; runs are compared only where this is equal.
        appearance: what a stage shows of a sample.
    """

    name: str

    def __init__(
        self,
        splits: Splits,
        settings: DataSettings,
        *,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world: int = 1,
        channels_last: bool = False,
        kernel: Kernel = "fourier",
    ) -> None:
        self.splits, self.settings, self.seed = splits, settings, seed
        self.rank, self.world = rank, world
        self.device = torch.device(device)
        self.size = splits.image_size
        self.appearance = Appearance(
            splits,
            settings,
            seed=seed,
            kernel=kernel,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        self._skipped = {
            name: Skipped(name, len(self.source(name)), settings.max_corrupt_fraction)
            for name in ("train", "val", "test")
        }
        self._warned = False

    @abstractmethod
    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        """As `BatchSource.train_batches`."""

    @abstractmethod
    def eval_batches(self, split: AnySplit, *, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        """As `BatchSource.eval_batches`."""

    @abstractmethod
    def train_images(self, positions: Tensor) -> Tensor:
        """Training images without augmentation or labels: uint8 (k, C, H, W) on the device, those that can be read.

        Args:
            positions: (b,) int64 on the CPU.
        """

    @cached_property
    def buffer(self) -> ReplayBuffer:
        """The samples that stages with replay may show again: index and weight."""
        draws = randomness.key(self.seed, 0, self.rank) % 2**63  # each rank replays what it has read itself
        limit = int(self.settings.replay_limit_gb * 1e9)
        return ReplayBuffer(
            limit, seed=draws, max_samples=len(self.splits.train), beside=self.bytes_to_replay()
        )

    def bytes_to_replay(self) -> int:
        """Memory that showing a sample again takes, beside its index and weight."""
        return 0

    def prepare(self, epoch: int) -> Iterator[None]:
        """Nothing has to be done before an epoch."""
        return iter(())

    def spent_flops(self) -> float:
        """Reading data takes no FLOPs."""
        return 0.0

    def bytes_taken(self) -> int | None:
        """As `BatchSource.bytes_taken`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What later batches depend on and this rank alone knows."""
        return {"replay": {name: tensor.cpu() for name, tensor in self.buffer.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        self.buffer.load_state_dict(state["replay"])

    def join(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up what is common to all ranks from the state of rank 0: this rank was not there before."""

    @property
    def has_val(self) -> bool:
        """Whether there is anything to validate on."""
        return len(self.splits.val) > 0

    def metrics(self) -> dict[str, float]:
        """What is worth reporting after an epoch."""
        if not len(self.buffer):
            return {}
        return {"replay_samples": len(self.buffer), "replay_bytes": self.buffer.nbytes}

    @staticmethod
    def replayed(buffer: ReplayBuffer, fresh: Batch, step: Step, epoch: int) -> Batch:
        """What is read for a step and, in a stage that replays, (replay - 1) times as many of the buffer, which
        `fresh` (index and weight) enters."""
        times = step.stage.replay
        if times == 1:
            return fresh
        if step.number == WARM_UP:
            return {name: torch.cat([tensor] * times) for name, tensor in fresh.items()}
        return buffer.extend(fresh, times, epoch=epoch, step=step.number)

    def views(self, index: Tensor, step: Step) -> Tensor:
        """What keys the augmentation of each sample (b,), beside the epoch: its index.

        Where samples come back within an epoch, or even within a step, another number for each time.
        """
        times = step.stage.replay
        if times == 1:
            return index
        part = torch.arange(len(index), device=index.device) // max(1, len(index) // times)
        return index + len(self.splits.train) * (1 + step.number * times + part)

    def images(self) -> dict[str, bytes]:
        """What is worth looking at after an evaluation: PNG files by name."""
        return {}

    def unnormalised(self, x: Tensor) -> Tensor:
        """Inputs (b, C, H, W) as uint8 images again."""
        return self.appearance.unnormalised(x)

    def close(self) -> None:  # noqa: B027 - only worker processes need ending
        """End worker processes. The loader cannot be used afterwards."""

    @property
    def skipped(self) -> Mapping[str, Skipped]:
        """For each split, how many samples could not be read so far (`count`) and the first `names`."""
        return self._skipped

    def source(self, split: str) -> Source:
        """The source behind a split."""
        return {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]

    def positions_of_rank(self, split: str, batch_size: int, most: int | None) -> Sequence[Tensor]:
        """Positions of the samples this rank evaluates, batch by batch."""
        size = len(self.source(split))
        return rank_positions(size, self.rank, self.world, batch_size=batch_size, most=most)

    def warn_of_magnitude(self, steps: Sequence[Step], where: str) -> None:
        """Say once that magnitudes do nothing, and where."""
        if not self._warned and any(self.appearance.magnitude(step.stage) for step in steps):
            self._warned = True
            log.warning("RandAugment magnitudes have no effect %s", where)


def rank_positions(
    size: int, rank: int, world: int, *, batch_size: int, most: int | None
) -> Sequence[Tensor]:
    """Positions in a split that a rank evaluates, batch by batch, on the CPU; ranks may differ by one sample.

    Args:
        size: samples of the split.
        most: samples of all ranks at most, evenly taken from the split; by default all.
    """
    count = size if most is None else min(size, most)
    positions = torch.arange(rank, count, world) * size // max(count, 1)
    return positions.split(batch_size) if len(positions) else ()
