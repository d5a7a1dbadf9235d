"""Evaluation on one split, over all workers, and a look at some of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain_speedup.data.batch import Batch, BatchSource, evaluation_keys
from raytrain_speedup.models.resize import at_size
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import Model, Split, Task


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, and back in the mode it was in."""
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)


@contextmanager
def answering(model: nn.Module, autocast: torch.autocast) -> Iterator[Model]:
    """The model as a task judges it: in evaluation mode and in the run's arithmetic."""

    def answer(*inputs: Any) -> Any:
        with autocast:
            return network(*inputs)

    with evaluating(model) as network:
        yield answer


def as_judged(batch: Batch) -> Batch:
    """With the keys of what the task draws in an evaluation."""
    return batch | {"draws": evaluation_keys(batch["index"]).to(batch["inputs"].device)}


@torch.inference_mode()
def validation_images(
    model: nn.Module, task: Task, loader: BatchSource, *, autocast: torch.autocast
) -> dict[str, bytes]:
    """What the task has to show of the first samples of the validation split, of which one at least can be read:
    PNG files by name."""
    batches = loader.eval_batches("val", batch_size=task.shown)
    batch = next(batch for batch in batches if len(batch["inputs"]))
    with answering(model, autocast) as answers:
        return dict(task.images(answers, as_judged(batch), loader.unnormalised(batch["inputs"])))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task,
    loader: BatchSource,
    split: Split,
    *,
    batch_size: int,
    autocast: torch.autocast,
) -> dict[str, float]:
    """The task's metrics on `split` ("val" or "test"), of which every rank has a sample at least.

    The model is left in the mode it was in.
    """
    with answering(model, autocast) as answers:
        if task.fitted_on:
            batches = loader.eval_batches("train", batch_size=batch_size, most=task.fitted_on)
            task.fit(_together(partial(task.summary, answers), batches, "train"))
        batches = loader.eval_batches(split, batch_size=batch_size)
        totals = _together(partial(task.totals, answers), batches, split, collected=task.collected)
        return task.metrics(totals, split)


@torch.inference_mode()
def sample_features(model: nn.Module, task: Task, loader: BatchSource, batch_size: int) -> Tensor:
    """The task's features of all training samples, (N, d), the same on every rank; zeros where a sample cannot be
    read."""
    found = None
    with evaluating(model) as network:
        for batch in loader.eval_batches("train", batch_size=batch_size):
            features = task.features(network, batch)
            if found is None:
                found = features.new_zeros(len(loader.splits.train), features.shape[1])
            found[batch["index"]] = features
    assert found is not None, "every rank has a sample"
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(found)  # every sample is another's zero
    return found


def _together(
    of_batch: Callable[[Batch], Tensor], batches: Iterable[Batch], split: str, *, collected: bool = False
) -> Tensor:
    """The sum over the batches of all ranks, or, `collected`, all of their rows."""
    parts: list[Tensor] = []
    for batch in batches:
        if len(batch["inputs"]):  # one at least of its samples could be read
            part = of_batch(as_judged(batch))
            if collected or not parts:
                parts.append(part)
            else:
                parts[0] = parts[0] + part
    if not parts:
        raise UserError(f"data.{split}: not one of the samples can be read")
    total = torch.cat(parts)
    if dist.is_initialized() and dist.get_world_size() > 1:
        if collected:
            return _of_all_ranks(total)
        dist.all_reduce(total)
    return total


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Rows (n, c) of every rank, one rank's after another's; how many each has differs."""
    rank, world = dist.get_rank(), dist.get_world_size()
    counts = rows.new_zeros(world)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    places = rows.new_zeros(int(counts.sum()), rows.shape[1])
    first = int(counts[:rank].sum())
    places[first : first + len(rows)] = rows
    dist.all_reduce(places)  # every row is another rank's zero
    return places


class Evaluator:
    """Evaluates the networks of a run, at full size.

    Args:
        task: what judges them.
        loader: of the splits.
        size: of an image, in pixels.
        batch_size: of all `world` ranks together.
        autocast: the arithmetic of the run.
    """

    def __init__(
        self,
        task: Task,
        loader: BatchSource,
        *,
        size: int,
        batch_size: int,
        world: int,
        autocast: torch.autocast,
    ) -> None:
        self.task, self.loader, self.size, self.autocast = task, loader, size, autocast
        self.batch_size, self.world = batch_size, world

    def __call__(self, network: nn.Module, split: Split) -> dict[str, float]:
        """The task's metrics on a split; called on all ranks."""
        with at_size(network, self.size) as model:
            if self.world > 1:
                for buffer in model.buffers():  # each rank has its own batch statistics; rank 0's are saved
                    dist.broadcast(buffer, 0)
            of_rank = self.batch_size // self.world
            return evaluate(model, self.task, self.loader, split, batch_size=of_rank, autocast=self.autocast)

    def images(self, network: nn.Module) -> dict[str, bytes]:
        """What the task shows of the validation split: PNG files by name; called on one rank."""
        if not self.task.shown or not self.loader.has_val:
            return {}
        with at_size(network, self.size) as model:
            return validation_images(model, self.task, self.loader, autocast=self.autocast)
