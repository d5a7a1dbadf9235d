"""A batch sampler for the `DataLoader` that a script has already: on one process, or one of many under DDP.

    sampler = PrunedBatchSampler(len(dataset), schedule, epochs=200, batch_size=128)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=8, persistent_workers=True)
    for epoch in range(sampler.epoch, sampler.epochs):
        sampler.set_epoch(epoch)                          # the epoch's one collective
        for inputs, target in loader:
            losses = cross_entropy(ddp(inputs), target, reduction="none")
            sampler.loss(losses).backward()
            ...

The sampler knows the order of its batches, so neither the dataset nor the batch has to carry index and weight.
What a stage of a curriculum shows is up to the loop, which sees whole images here: `low_frequency_crop(inputs,
sampler.size)`. `PrunedLoader` does that in its workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Sampler

from raytrain_speedup.adapters.epochs import PrunedEpochs, Pruning


class PrunedBatchSampler(PrunedEpochs, Sampler[list[int]]):
    """The batches of this process as positions in the dataset; see `PrunedEpochs` for the arguments."""

    def __init__(self, num_samples: int, pruning: Pruning, *, batch_size: int, **options: Any) -> None:
        super().__init__(num_samples, pruning, batch_size=batch_size, **options)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch that are left.

        Raises:
            UserError: if the epoch is over.
        """
        for batch in self._remaining():
            yield batch.index.tolist()

    @property
    def size(self) -> int | None:
        """Image size in pixels of the next batch under the curriculum; None leaves the images as they are."""
        return self.budget.stage_at(self.progress).size

    def loss(self, losses: Tensor) -> Tensor:
        """What to call `backward` on, of the next batch: `(losses * weight).sum() / count`, times the number of
        processes, whose gradients DDP averages. Notes the losses for the next plan; to be called once for every
        batch, in order.

        Args:
            losses: (b,) of any floating type, one per sample: a criterion with `reduction="none"`.

        Returns:
            (), to be summed over the batches of an optimizer step: not divided by `accumulate` again.

        Raises:
            UserError: unless there is one loss per sample, or if the epoch is over.
        """
        batch = self._remaining()[0]
        return self._loss(self._position, batch.weight, losses)
