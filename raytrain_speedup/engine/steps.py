"""From the plan of an epoch to the steps of one rank.

A step is a stretch of consecutive entries of the plan; every rank shows its contiguous part of it. So one
worker and two workers take the same optimizer steps, every sample is shown at most once, and all ranks take
equally many steps.
"""

from __future__ import annotations

from raytrain_speedup.data.batch import Step
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning.base import EpochPlan


def epoch_steps(
    plan: EpochPlan, budget: Budget, epoch: int, *, batch_size: int, rank: int = 0, world: int = 1
) -> list[Step]:
    """The steps that `rank` of `world` takes in an epoch.

    Args:
        plan: what the epoch shows.
        budget: says at which progress, and so in which stage, each step begins. The last epoch may be cut
            short where the budget ends.
        batch_size: samples of a step over all ranks; a stage's `batch_factor` multiplies it. Where a stage
            replays, a step reads only one in `replay` of them.
    """
    share = budget.last_epoch_share if epoch == len(budget.epoch_ends()) - 1 else 1.0
    shown = min(max(world, round(share * plan.kept)), plan.kept)
    steps: list[Step] = []
    start = 0
    while start < shown:
        progress = budget.progress(epoch, start / plan.kept)
        stage = budget.stage_at(progress)
        stop = min(start + max(world, batch_size * stage.batch_factor // stage.replay), shown)
        if shown - stop < world:  # too few left to give every rank one: they join this step
            stop = shown
        mine = slice(start + (stop - start) * rank // world, start + (stop - start) * (rank + 1) // world)
        steps.append(
            Step(
                len(steps),
                plan.indices[mine],
                plan.weights[mine],
                (stop - start) * stage.replay,
                float(progress),
                stage,
            )
        )
        start = stop
    return steps
