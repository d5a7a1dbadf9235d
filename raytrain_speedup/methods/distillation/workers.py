"""What the workers of a run share in a synthesis call: averages, taken in one all-reduce of one buffer, and
the networks' batch statistics.

Without a process group, or in a group of one, everything here leaves its arguments as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This worker's rank, 0 without a process group."""
    return dist.get_rank() if _grouped() else 0


def world() -> int:
    """The number of workers, 1 without a process group."""
    return dist.get_world_size() if _grouped() else 1


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor (all of one dtype and device) over the workers, by one all-reduce."""
    if not _grouped():
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def share_buffers(network: nn.Module) -> None:
    """Give all workers the buffers of rank 0: each has its own batch statistics after a step of training."""
    if _grouped():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
