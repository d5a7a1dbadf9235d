"""Evaluation on one split, over all workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from raytrain_speedup.data import Loader
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import Split, Task


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, and back in the mode it was in."""
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task,
    loader: Loader,
    split: Split,
    *,
    batch_size: int,
    autocast: torch.autocast,
) -> dict[str, float]:
    """The task's metrics on `split` ("val" or "test"), of which every rank has a sample at least.

    The model is left in the mode it was in.
    """
    totals = None
    with evaluating(model):
        for batch in loader.eval_batches(split, batch_size=batch_size):
            if not len(batch["inputs"]):  # not one of its samples could be read
                continue
            with autocast:
                output = model(batch["inputs"])
            part = task.totals(output, batch["target"])
            totals = part if totals is None else totals + part
    if totals is None:
        raise UserError(f"data.{split}: not one of the samples can be read")
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(totals)
    return task.metrics(totals, split)
