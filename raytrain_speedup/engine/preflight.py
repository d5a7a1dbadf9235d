"""A few steps of every stage before paying for any.

Whatever would stop the run in its last stage (a model that cannot take the size, a batch that does not fit)
stops it here, in seconds. And since loader and device are timed apart, it is seen which stages wait for images.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.measure import Stopwatch, peak_memory, synchronize
from raytrain_speedup.engine.reporter import Figures, Reporter
from raytrain_speedup.engine.run import pick_device
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError


@dataclass(frozen=True)
class StageCheck:
    """What one stage costs.

    Attributes:
        stage: the stage.
        size: side of its inputs in pixels.
        batch: samples of a step on this worker.
        samples: how many the stage shows in the whole run, before pruning.
        device_rate: samples a second that the device can train on.
        loader_rate: samples a second that the loader delivers, replayed ones included.
        memory: peak bytes so far.
    """

    stage: Stage
    size: int
    batch: int
    samples: float
    device_rate: float
    loader_rate: float
    memory: int

    @property
    def seconds(self) -> float:
        """Estimated time of the stage: loader and device work side by side, the slower one decides."""
        return self.samples / min(self.device_rate, self.loader_rate)

    @property
    def decode_bound(self) -> bool:
        """Whether the device waits for images, by more than the noise of a few steps."""
        return self.loader_rate < 0.9 * self.device_rate

    def remedy(self, workers: int) -> str:
        """What would mend a stage that waits for images."""
        if not self.decode_bound:
            return ""
        times = self.device_rate / self.loader_rate
        wanted = math.ceil(max(1, workers) * times)
        cores = os.cpu_count() or 1
        more = (
            f"data.num_workers={wanted}"
            if wanted <= cores
            else f"{wanted} loader workers ({cores} cores here)"
        )
        return f"{more}, or replay {math.ceil(self.stage.replay * times)}"


@dataclass(frozen=True)
class Preflight:
    """The checks of all stages, in the order of the run."""

    checks: Sequence[StageCheck]

    @property
    def seconds(self) -> float:
        """Estimated training time of the run, on as many workers as it will have, without pruning."""
        return sum(check.seconds for check in self.checks)

    @property
    def full_seconds(self) -> float:
        """The same number of samples, all as the last stage shows them."""
        last = self.checks[-1]
        return sum(check.samples for check in self.checks) * last.seconds / last.samples

    @property
    def speedup(self) -> float:
        """`full_seconds` over `seconds`: what the curriculum saves at equal samples."""
        return self.full_seconds / self.seconds


def preflight(
    experiment: Experiment, *, steps: int = 4, on_check: Callable[[StageCheck], None] | None = None
) -> Preflight:
    """Run a few steps of every stage of an experiment, on one worker.

    Args:
        experiment: what will be run; its batch is this worker's share.
        steps: timed steps of a stage.
        on_check: gets every stage's result as it comes.

    Raises:
        UserError: for what would stop the run.
    """
    device = pick_device(experiment.train.device)
    splits = open_data(experiment.data, seed=experiment.train.seed)
    loop, _ = assemble(experiment, splits, _Nowhere(), Stopwatch(device))
    world = experiment.scaling.workers
    checks = []
    with contextlib.closing(loop.loader):
        for stage, samples in zip(loop.budget.stages, loop.budget.samples_shown(), strict=True):
            check = _check(loop, stage, samples / world, experiment.train.batch_size // world, steps)
            checks.append(check)
            if on_check is not None:
                on_check(check)
    return Preflight(checks)


def _check(loop: Loop, stage: Stage, samples: float, batch_size: int, steps: int) -> StageCheck:
    batch_size = min(batch_size * stage.batch_factor, loop.budget.num_samples)
    size = stage.size or loop.full_size
    plan = [_step(number, batch_size, loop.budget.num_samples, stage) for number in range(steps + 1)]
    try:
        batches, loader_seconds = _timed_batches(loop, plan)
        device_seconds = _timed_steps(loop, plan, batches)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"train.batch_size: {batch_size} samples of {size} x {size} pixels do not fit the device's memory "
            "in the stage that ends at progress "
            f"{stage.ends_at:.2f}; expected a smaller batch, or train.accumulate"
        ) from error
    shown = steps * batch_size
    return StageCheck(
        stage=stage,
        size=size,
        batch=batch_size,
        samples=samples,
        device_rate=shown / device_seconds,
        loader_rate=shown / loader_seconds,
        memory=peak_memory(loop.device),
    )


def _timed_batches(loop: Loop, plan: Sequence[Step]) -> tuple[list[Batch], float]:
    """The batches of the steps, and the seconds from the first one's arrival to the last one's."""
    batches = iter(loop.loader.train_batches(plan, epoch=0))
    kept = [next(batches)]
    synchronize(loop.device)
    start = time.perf_counter()
    kept += list(batches)
    synchronize(loop.device)
    return kept, time.perf_counter() - start


def _timed_steps(loop: Loop, plan: Sequence[Step], batches: Sequence[Batch]) -> float:
    """Seconds of the steps after the first, which meets the stage's size and compiles."""
    loop.model.train()
    loop.train_step(plan[0], batches[0], advance=0.0)
    synchronize(loop.device)
    start = time.perf_counter()
    for step, batch in zip(plan[1:], batches[1:], strict=True):
        loop.train_step(step, batch, advance=0.0)
    synchronize(loop.device)
    return time.perf_counter() - start


def _step(number: int, batch_size: int, num_samples: int, stage: Stage) -> Step:
    index = (torch.arange(batch_size) + number * batch_size) % num_samples
    return Step(number, index, torch.ones(batch_size), batch_size, 0.0, stage)


class _Nowhere(Reporter):
    """Nothing of a preflight is kept."""

    def report(self, figures: Figures, checkpoint: Path | None = None) -> None:
        """Not called: there are no epochs."""

    def latest(self) -> Path | None:
        return None

    def new_folder(self) -> Path:
        raise AssertionError("a preflight writes no checkpoints")
