"""A few steps of every stage before paying for any.

Whatever would stop the run in its last stage (a model that cannot take the size, a batch that does not fit), or
after it (a test split that cannot be read), stops it here, in seconds. And since loader and device are timed
apart, it is seen which stages wait for images.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import WorkerLoader, open_data
from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint
from raytrain_speedup.engine.cost.measure import Stopwatch, peak_memory, synchronize, within_memory
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.reporter import KeepsNothing, Metrics
from raytrain_speedup.engine.run import pick_device
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError

WEIGHED = 64
"""Samples whose bytes are counted, for their mean."""

DECODE_BOUND = 0.9
"""Fraction of the device's rate below which a loader holds it up, by more than the noise of a few steps."""


@dataclass(frozen=True)
class StageCheck:
    """What one stage costs, or several in a row that differ in their magnitude alone.

    Attributes:
        stage: the stage, the last and hardest of them; it was measured.
        magnitudes: of the first and the last of them.
        size: of its inputs, in pixels.
        batch: samples of a step on this worker.
        samples: how many it shows a worker in the whole run, before pruning.
        device_rate: samples a second that the device can train on.
        loader_rate: samples a second that the loader delivers, replayed ones included.
        workers: processes that decode; None where the decoded images live on the device.
        memory: peak bytes so far.
        may_decode: whether the device could decode what those processes do.
    """

    stage: Stage
    magnitudes: tuple[float | None, float | None]
    size: int
    batch: int
    samples: float
    device_rate: float
    loader_rate: float
    workers: int | None
    memory: int
    may_decode: bool = False

    @property
    def seconds(self) -> float:
        """Estimated time of the stage: where processes decode, the slower side decides, else both add up."""
        if self.workers:
            return self.samples / min(self.device_rate, self.loader_rate)
        return self.samples / self.device_rate + self.samples / self.loader_rate

    @property
    def decode_bound(self) -> bool:
        """Whether the device waits for images to be decoded."""
        return self.workers is not None and self.loader_rate < DECODE_BOUND * self.device_rate

    @property
    def remedy(self) -> str:
        """What would mend a stage that waits for images; nothing where it does not."""
        if not self.decode_bound:
            return ""
        times = self.device_rate / self.loader_rate
        wanted, cores = math.ceil(max(1, self.workers or 0) * times), os.cpu_count() or 1
        if wanted > cores:
            otherwise = ", or data.decode=device" if self.may_decode else ""
            return f"{wanted} processes that decode (data.num_workers; {cores} cores here){otherwise}"
        return f"data.num_workers={wanted}"


@dataclass(frozen=True)
class Preflight:
    """The checks of all stages, in the order of the run.

    Attributes:
        gradient_bytes: that workers exchange in a step.
        sample_bytes: mean of what is read of a sample; None where nothing is read during the run.
    """

    checks: Sequence[StageCheck]
    gradient_bytes: int = 0
    sample_bytes: float | None = None

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
        experiment: what will be run; its batch is this worker's part.
        steps: timed steps of a stage.
        on_check: gets every result as it comes.

    Raises:
        UserError: for what would stop the run.
    """
    if experiment.distillation is not None:
        raise UserError(
            "distillation: a preflight tries the stages of a curriculum, which needs data; expected an "
            "experiment without this section"
        )
    world = experiment.scaling.most_workers
    batch_size = max(1, experiment.train.batch_size // world)
    own = experiment.with_overrides({"scaling.workers": 1, "train.batch_size": batch_size})
    device = pick_device(experiment.train.device)
    splits = open_data(experiment.data, seed=experiment.train.seed)
    loop, _ = assemble(own, splits, _Nowhere(), Stopwatch(device))
    checks = []
    with contextlib.closing(loop.loader):
        for stages, samples in _alike(loop.budget.stages, loop.budget.samples_shown()):
            check = _check(loop, stages, samples / world, steps)
            checks.append(check)
            if on_check is not None:
                on_check(check)
        trained = (parameter for parameter in loop.model.parameters() if parameter.requires_grad)
        gradient_bytes = sum(parameter.nbytes for parameter in trained)
        return Preflight(checks, gradient_bytes, None if _workers(loop) is None else _sample_bytes(splits))


def _sample_bytes(splits: Splits) -> float | None:
    """Mean of what is read of a sample, over some of them; None where a source does not say."""
    some = range(0, len(splits.train), max(1, len(splits.train) // WEIGHED))
    read = splits.train.encoded_many(some)
    known = [len(found) for found in read if found is not None and not isinstance(found, CorruptSample)]
    return sum(known) / len(known) if known else None


def _alike(stages: Sequence[Stage], samples: Sequence[float]) -> Iterator[tuple[list[Stage], float]]:
    """Stages in a row that cost the same, and what they show together: one measurement serves them all."""

    def kind(pair: tuple[Stage, float]) -> tuple[int | None, int, int, float]:
        return pair[0].size, pair[0].batch_factor, pair[0].replay, pair[0].tokens

    for _, group in groupby(zip(stages, samples, strict=True), kind):
        pairs = list(group)
        yield [stage for stage, _ in pairs], sum(shown for _, shown in pairs)


def _check(loop: Loop, stages: Sequence[Stage], samples: float, steps: int) -> StageCheck:
    stage = max(stages, key=lambda stage: stage.magnitude or 0.0)
    size = stage.size or loop.full_size
    plan = [loop.warm_up_step(stage, number=number) for number in range(steps + 1)]
    batch = plan[0].count
    with within_memory(batch, size, loop.task.inputs):
        batches, loader_seconds = _timed_batches(loop, plan)
        device_seconds = _timed_steps(loop, plan, batches)
    return StageCheck(
        stage=stages[-1],
        magnitudes=(stages[0].magnitude, stages[-1].magnitude),
        size=size,
        batch=batch,
        samples=samples,
        device_rate=batch / device_seconds,
        loader_rate=batch / loader_seconds,
        workers=_workers(loop),
        memory=peak_memory(loop.device),
        may_decode=loop.device.type == "cuda" and loop.experiment.data.decode == "workers",
    )


def _timed_batches(loop: Loop, plan: Sequence[Step]) -> tuple[list[Batch], float]:
    """The batches of the steps, and the seconds that the loader takes for one.

    Processes that decode work on as many batches at once and are ahead of whoever asks, so the batches of a
    first round are not timed, and after it whole rounds are.
    """
    abreast = max(1, _workers(loop) or 0)
    timed = abreast * math.ceil((len(plan) - 1) / abreast)
    more = range(len(plan), abreast + timed)
    steps = [*plan, *(loop.warm_up_step(plan[0].stage, number=number) for number in more)]
    kept: list[Batch] = []
    start = 0.0
    for number, batch in enumerate(loop.loader.train_batches(steps, epoch=0)):
        if number < len(plan):
            kept.append(batch)
        if number == abreast - 1:
            synchronize(loop.device)
            start = time.perf_counter()
    synchronize(loop.device)
    return kept, (time.perf_counter() - start) / timed


def _workers(loop: Loop) -> int | None:
    """Processes that decode; None where nothing is decoded during the run."""
    return loop.loader.settings.num_workers if isinstance(loop.loader, WorkerLoader) else None


def _timed_steps(loop: Loop, plan: Sequence[Step], batches: Sequence[Batch]) -> float:
    """Median seconds of a step, but for the first one, which meets the stage's size and compiles."""
    loop.model.train()
    seconds = []
    for step, batch in zip(plan, batches, strict=True):
        start = time.perf_counter()
        loop.train_step(step, batch, advance=0.0)
        synchronize(loop.device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


class _Nowhere(KeepsNothing):
    """Nothing of a preflight is kept."""

    def report(self, metrics: Metrics, checkpoint: Checkpoint | None = None) -> None:
        """Not called: there are no epochs."""
