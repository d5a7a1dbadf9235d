"""A loader for plain PyTorch that shows what a pruner plans, in place of a `DataLoader`.

    loader = PrunedLoader(dataset, schedule, epochs=200, batch_size=128, num_workers=8)
    scheduler = ProgressLR(optimizer, loader, "one-cycle", warmup=0.3)
    for epoch in range(loader.epoch, loader.epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            losses = cross_entropy(model(batch["inputs"]), batch["target"], reduction="none")
            loader.loss(batch, losses).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()

Whole batches are requested of the `DataLoader`'s workers, which collate them and, under a curriculum, reduce their
images to the size of the stage: small images are what travels between processes and to the device. Workers live
through all epochs.

A sample's random transforms are drawn from generators seeded by (seed, epoch, sample), so that a run resumed in the
middle of an epoch sees what the uninterrupted one sees, whatever the number of workers or processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from raytrain_speedup.adapters.epochs import PrunedEpochs, Pruning, as_images
from raytrain_speedup.methods.curriculum.base import Kernel
from raytrain_speedup.methods.curriculum.crop import low_frequency_crop
from raytrain_speedup.randomness import seeds
from raytrain_speedup.settings import UserError

Collate = Callable[[list[Any]], Any]

OWN = ("index", "weight", "count", "number")
"""Keys that a batch has from here."""

IMAGES = ("inputs", "pixel_values", "image", "images")
"""Keys of a batch that may hold the images a curriculum reduces; the first one counts."""


class PrunedLoader(PrunedEpochs):
    """Batches of a map-style dataset as a pruner plans them; see the module for its use.

    A batch is a dictionary: what `collate_fn` makes of the samples, `inputs` and `target` where that is a pair, and

    - `index`: (b,) int64, positions in the dataset
    - `weight`: (b,) float32, what each loss counts
    - `count`: int, samples of the whole optimizer step on all processes, by which its summed losses are divided
    - `number`: int, position of the batch in the epoch

    Args:
        dataset: map-style: a length, and a sample for each position.
        pruning: a pruner, the settings of one, a schedule, or the path of a schedule file.
        collate_fn: makes a pair (inputs, target) or a mapping of a list of samples; torch's own if None.
        num_workers: processes that load; 0 loads in this one.
        pin_memory, prefetch_factor, timeout, multiprocessing_context, worker_init_fn: as of `DataLoader`.
        batch_size, epochs, accumulate, curriculum, image_size, stride, seed, group: see `PrunedEpochs`.

    RandAugment magnitudes of a curriculum's stages are left to the dataset's own transforms.

    Raises:
        UserError: if the dataset has no length or the arguments do not fit together.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Any],
        pruning: Pruning,
        *,
        batch_size: int,
        collate_fn: Collate | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        timeout: float = 0,
        multiprocessing_context: Any = None,
        worker_init_fn: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        streamed = isinstance(dataset, IterableDataset)  # it may have a length all the same
        if streamed or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise UserError(
                f"dataset: {type(dataset).__name__} has no length or no positions; expected a map-style dataset "
                "(pruning needs to ask for single samples)"
            )
        super().__init__(len(dataset), pruning, batch_size=batch_size, **options)
        self.dataset = dataset
        self._requests: list[Request] = []
        self._loader: DataLoader[dict[str, Any]] = DataLoader(
            BatchDataset(dataset, collate_fn or default_collate, self.seed, self.curriculum.kernel),
            batch_size=None,
            sampler=_Current(self),
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            timeout=timeout,
            multiprocessing_context=multiprocessing_context,
            worker_init_fn=worker_init_fn,
            generator=torch.Generator(),  # or every epoch would draw a number from the global one
        )

    @property
    def sampler(self) -> PrunedLoader:
        """Where frameworks look for `set_epoch`."""
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches of the epoch that are left.

        Raises:
            UserError: if the epoch is over, a batch is no pair and no mapping, or not of images under a curriculum.
        """
        rest = self._remaining()
        first = len(self) - len(rest)
        self._requests = [Request(batch.index.tolist(), self._epoch, batch.stage.size) for batch in rest]
        for number, (batch, content) in enumerate(zip(rest, self._loader, strict=True), start=first):
            yield {
                **content,
                "index": batch.index,
                "weight": batch.weight,
                "count": batch.count,
                "number": number,
            }

    def loss(self, batch: Mapping[str, Any], losses: Tensor) -> Tensor:
        """What to call `backward` on: `(losses * weight).sum() / count`, times the number of processes, whose
        gradients DDP averages. Notes the losses for the next plan; to be called once for every batch.

        Args:
            batch: as the loader gave it, on any device.
            losses: (b,) of any floating type, one per sample: a criterion with `reduction="none"`.

        Returns:
            (), to be summed over the batches of an optimizer step: not divided by `accumulate` again.

        Raises:
            UserError: unless there is one loss per sample.
        """
        return self._loss(batch["number"], batch["weight"], losses)


@dataclass(frozen=True)
class Request:
    """One batch to load.

    Attributes:
        index: positions in the dataset.
        epoch: keys the randomness beside them.
        size: of the images in pixels; None leaves them as they are.
    """

    index: list[int]
    epoch: int
    size: int | None


class BatchDataset(Dataset):
    """Loads whole batches: in a worker process, or in this one."""

    def __init__(self, dataset: Any, collate: Collate, seed: int, kernel: Kernel) -> None:
        self.dataset, self.collate, self.seed, self.kernel = dataset, collate, seed, kernel

    def __getitem__(self, request: Request) -> dict[str, Any]:
        with own_generators():
            samples = [self._sample(index, request.epoch) for index in request.index]
        content = as_mapping(self.collate(samples))
        if request.size is not None:
            key = next((name for name in IMAGES if name in content), None)
            images = as_images(content.get(key or "inputs"))
            content[key or "inputs"] = low_frequency_crop(images, request.size, self.kernel)
        return content

    def _sample(self, index: int, epoch: int) -> Any:
        key, key32 = seeds(2, self.seed, epoch, index)
        torch.manual_seed(key)
        random.seed(key)
        np.random.seed(key32 % 2**32)  # noqa: NPY002 - transforms draw from the global generators
        return self.dataset[index]


class _Current:
    """The requests of the epoch that its loader is in."""

    def __init__(self, loader: PrunedLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Request]:
        return iter(self.loader._requests)

    def __len__(self) -> int:
        return len(self.loader._requests)


@contextmanager
def own_generators() -> Iterator[None]:
    """Give the generators of torch (CPU), Python and NumPy back as they were: a model's dropout draws from them."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])  # noqa: NPY002


def as_mapping(collated: Any) -> dict[str, Any]:
    """A batch as a dictionary without the keys of the loader.

    Raises:
        UserError: if it is no pair and no mapping, or has a key that the loader fills.
    """
    if isinstance(collated, Mapping):
        content = dict(collated)
        if taken := [name for name in OWN if name in content]:
            raise UserError(
                f"dataset: its samples have the key {taken[0]!r}, which the loader fills; expected another"
            )
        return content
    if isinstance(collated, Sequence) and len(collated) == 2:
        return {"inputs": collated[0], "target": collated[1]}
    raise UserError(
        f"collate_fn: a batch is {type(collated).__name__}; expected a pair (inputs, target) or a mapping"
    )


def _as_it_is(content: Any) -> Any:
    return content
