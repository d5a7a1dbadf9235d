"""Evaluation on one split, over all workers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from raytrain_speedup.data import Loader
from raytrain_speedup.tasks import Task


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task,
    loader: Loader,
    split: Literal["val", "test"],
    *,
    batch_size: int,
    autocast: torch.autocast,
) -> dict[str, float]:
    """The task's figures on `split` ("val" or "test"); the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    totals = None
    for batch in loader.eval_batches(split, batch_size=batch_size):
        with autocast:
            output = model(batch["inputs"])
        part = task.totals(output, batch["target"])
        totals = part if totals is None else totals + part
    model.train(was_training)
    assert totals is not None, f"the {split} split is empty"
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(totals)
    return task.figures(totals)
