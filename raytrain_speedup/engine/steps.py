"""From the plan of an epoch to the steps of one rank.

A step is a stretch of consecutive entries of the plan; every rank shows its contiguous part of it. So one
worker and two workers take the same optimizer steps, every sample is shown at most once, and all ranks take
equally many steps.
"""

from __future__ import annotations

import torch

from raytrain_speedup.data.batch import Step
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning import EpochPlan, rank_bounds


def epoch_steps(
    plan: EpochPlan,
    budget: Budget,
    epoch: int,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    taken: tuple[int, int] = (0, 0),
) -> list[Step]:
    """The steps that `rank` of `world` takes in an epoch, or those that are left of it.

    Args:
        plan: what the epoch shows.
        budget: says at which progress, and so in which stage, each step begins. The last epoch may be cut
            short where the budget ends.
        batch_size: samples of a step over all ranks; a stage's `batch_factor` multiplies it. Where a stage
            replays, a step reads only one in `replay` of them.
        taken: steps, and entries of the plan, that were shown before a checkpoint. Perhaps another number of
            workers showed them, and cut the end of the epoch elsewhere: so the rest is cut anew, and what is too
            little of it for a step of all workers is left out, rather than shown twice.
    """
    fraction = budget.last_epoch_fraction if epoch == len(budget.epoch_ends()) - 1 else 1.0
    # Two samples a rank where batches have as many: batch normalisation refuses to train on a single 1 x 1 map.
    least = 2 * world
    shown = min(max(least, round(fraction * plan.kept)), plan.kept)
    begins: list[tuple[float, Stage]] = []
    first, begin = taken
    offsets = [begin]
    while offsets[-1] < shown:
        progress = budget.progress(epoch, offsets[-1] / plan.kept)
        stage = budget.stage_at(progress)
        whole = max(world, batch_size * stage.batch_factor // stage.replay)
        if first and shown - offsets[-1] < min(least, whole):
            break
        stop = min(offsets[-1] + whole, shown)
        offsets.append(shown if shown - stop < min(least, whole) else stop)  # too few left join this step
        begins.append((float(progress), stage))
    starts, stops = (bound.tolist() for bound in rank_bounds(torch.tensor(offsets), rank, world))
    return [
        Step(
            first + number,
            plan.indices[starts[number] : stops[number]],
            plan.weights[starts[number] : stops[number]],
            (offsets[number + 1] - offsets[number]) * stage.replay,
            progress,
            stage,
        )
        for number, (progress, stage) in enumerate(begins)
    ]
