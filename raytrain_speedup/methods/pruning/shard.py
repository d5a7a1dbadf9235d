"""Which part of each step a worker takes: the same number of steps for all, every sample exactly once.

A global step is a stretch of consecutive entries of the plan; every worker takes a contiguous part of it. So
the plan and its steps do not depend on the number of workers, and a worker's fraction of an epoch is two int64
numbers per step, not a list of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raytrain_speedup.methods.pruning.base import EpochPlan
from raytrain_speedup.settings import UserError


def constant_offsets(num_shown: int, batch_size: int, world: int) -> Tensor:
    """Boundaries of steps of a constant batch size: step s is the entries [offsets[s], offsets[s + 1]).

    The remainder is a step of its own, unless it has fewer samples than there are workers: then it joins the
    last full step, so that no worker goes without.

    Args:
        num_shown: M, entries of the plan.
        batch_size: samples of a step on all workers together.
        world: number of workers.

    Returns:
        (S + 1,) int64, from 0 to M.

    Raises:
        UserError: if a batch has fewer samples than there are workers.
    """
    if batch_size < world:
        raise UserError(
            f"batch_size: {batch_size} is too small for {world} workers; expected at least {world}"
        )
    offsets = torch.arange(0, num_shown + batch_size, batch_size).clamp_(max=num_shown)
    if len(offsets) > 2 and offsets[-1] - offsets[-2] < world:
        offsets = torch.cat((offsets[:-2], offsets[-1:]))
    return offsets


def rank_bounds(offsets: Tensor, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The entries [starts[s], stops[s]) of the plan that a worker shows in each step s.

    Parts of a step differ by one sample at most. A step of fewer samples than workers leaves some without.

    Args:
        offsets: (S + 1,) int64, boundaries of the global steps.
        rank: which worker, in [0, world).
        world: number of workers.

    Returns:
        (S,) and (S,) int64.
    """
    begins, counts = offsets[:-1], offsets.diff()
    return begins + counts * rank // world, begins + counts * (rank + 1) // world


@dataclass(frozen=True)
class Shard:
    """One worker's part of an epoch; iterate over it for (index, weight) of each step.

    Attributes:
        plan: the whole epoch.
        counts: (S,) int64, samples of each step on all workers together: the divisor of the step's mean loss.
        starts: (S,) int64, first entry of the plan that this worker shows in each step.
        stops: (S,) int64, one past the last.
    """

    plan: EpochPlan
    counts: Tensor
    starts: Tensor
    stops: Tensor

    def __len__(self) -> int:
        """S, the number of steps: the same on every worker."""
        return len(self.counts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(index, weight) of this worker's part of each step: views of the plan, afresh on every call."""
        for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True):
            yield self.plan.indices[start:stop], self.plan.weights[start:stop]


def shard(plan: EpochPlan, *, batch_size: int, rank: int, world: int) -> Shard:
    """A worker's part of an epoch at a constant global batch size; see `constant_offsets` for the rules."""
    offsets = constant_offsets(plan.kept, batch_size, world)
    return Shard(plan, offsets.diff(), *rank_bounds(offsets, rank, world))
