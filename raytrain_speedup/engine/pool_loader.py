"""The loader of a run without data: batches come from the pool of synthetic images.

An epoch is one call of the synthesizer and the student steps after it, so the loop, its budget, learning rate,
checkpoints and workers serve distillation as they serve training. Targets are the teacher's logits, computed
with the batch. The student is judged on images that belong to the teacher alone (`evaluation_set.py`), the same
ones for every method and setting. The real data are read for the final test alone, and by the control `real`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_speedup.data import Loader
from raytrain_speedup.data.batch import WARM_UP, AnySplit, Batch, Step
from raytrain_speedup.data.unreadable import Skipped
from raytrain_speedup.engine.cost.measure import FlopCounter, Stopwatch
from raytrain_speedup.engine.synthesis_alarm import check_call
from raytrain_speedup.methods.distillation import Synthesis, SynthesisSettings, Synthesizer
from raytrain_speedup.methods.distillation.evaluation_set import evaluation_images
from raytrain_speedup.methods.distillation.networks import student_inputs, teacher_logits
from raytrain_speedup.methods.distillation.pool import Pool
from raytrain_speedup.methods.distillation.workers import share_buffers
from raytrain_speedup.tasks.images import image_grid

SHOWN_IMAGES = 64
"""Images in the grid that is kept of every evaluation."""


class PoolLoader:
    """A `BatchSource` that synthesises before an epoch's steps and serves them from the pool.

    Args:
        real: the loader of the data set; its test split judges the student at the end.
        synthesizer: makes a batch of images a call.
        teacher: frozen, on the device.
        student: the network in training; in synthesis it is a judge, and the same one on all workers.
        settings: of the synthesis.
        dtype: of the arithmetic of synthesis and of the teacher's forward passes.
        watch: synthesis is counted apart.
    """

    name = "pool of synthetic images"

    def __init__(
        self,
        real: Loader,
        *,
        synthesizer: Synthesizer,
        teacher: nn.Module,
        student: nn.Module,
        settings: SynthesisSettings,
        dtype: torch.dtype,
        watch: Stopwatch,
    ) -> None:
        self.real, self.synthesizer = real, synthesizer
        self.teacher, self.student = teacher, student
        self.synthesis, self.watch = settings, watch
        self.device, self.size, self.seed = real.device, real.size, real.seed
        # Without the cache: a generator's weights change inside, and what is cached of them would not.
        self.autocast = torch.autocast(
            self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False
        )
        self.rank, self.world, self.splits = real.rank, real.world, real.splits
        self._shape = shape = (real.splits.channels, real.size, real.size)
        self.pool = Pool(settings.pool_capacity, shape, device=self.device)
        self.evaluation: Tensor | None = None  # (N, C, H, W) uint8, made before the first call
        mean, std = (
            torch.tensor(values, device=self.device) for values in (real.settings.mean, real.settings.std)
        )
        self._mean, self._std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self._calls = 0  # made so far
        self._losses: dict[str, float] = {}  # of the last call
        self._call_flops: dict[Hashable, float] = {}
        self._spent_flops = 0.0

    def prepare(self, epoch: int) -> Iterator[None]:
        if self.evaluation is None:
            with self.watch.phase("eval"):
                self.evaluation = evaluation_images(self.synthesizer.problem)
            yield
        while self._calls <= self.synthesis.warmup + epoch:
            self._synthesize(self._calls)
            self._calls += 1
            yield

    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        for step in steps:
            key = (self.seed, self.rank, epoch, step.number)
            if step.number == WARM_UP:
                images = torch.zeros((len(step.index), *self._shape), device=self.device)
            else:
                images = self.pool.sample(len(step.index), *key)
            inputs = student_inputs(images, self.synthesis.augment_for_student, self._mean, self._std, *key)
            yield self._batch(inputs, step.index, step.weight)

    def eval_batches(self, split: AnySplit, *, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        if split == "test":
            yield from self.real.eval_batches("test", batch_size=batch_size, most=most)
            return
        assert self.evaluation is not None, "prepare() comes first"
        for images in self.evaluation[self.rank :: self.world].split(batch_size):
            inputs = (images.float() / 255 - self._mean) / self._std
            yield self._batch(inputs, torch.arange(len(images)), torch.ones(len(images)))

    def unnormalised(self, x: Tensor) -> Tensor:
        return self.real.unnormalised(x)

    def bytes_taken(self) -> int | None:
        """There are no files."""
        return None

    def spent_flops(self) -> float:
        spent, self._spent_flops = self._spent_flops, 0.0
        return spent

    def state_dict(self) -> dict[str, Any]:
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "pool": self.pool.state_dict(),
            "evaluation": self.evaluation,
            "calls": self._calls,
            "losses": self._losses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.pool.load_state_dict(state["pool"])
        evaluation = state["evaluation"]
        self.evaluation = None if evaluation is None else evaluation.to(self.device)
        self._calls, self._losses = state["calls"], state["losses"]

    def join(self, state: Mapping[str, Any]) -> None:
        """A rank that comes later begins with the synthesizer, and with the pool, of rank 0."""
        self.load_state_dict(state)

    @property
    def has_val(self) -> bool:
        """Always, whatever the data set has."""
        return True

    @property
    def skipped(self) -> Mapping[str, Skipped]:
        return self.real.skipped

    def close(self) -> None:
        self.real.close()

    def metrics(self) -> dict[str, float]:
        losses = {f"synthesis_{name}": value for name, value in self._losses.items()}
        return {"pool_images": len(self.pool), **losses}

    def images(self) -> dict[str, bytes]:
        return {"synthetic": image_grid(self.pool.newest(SHOWN_IMAGES), columns=math.isqrt(SHOWN_IMAGES))}

    def _synthesize(self, call: int) -> None:
        with self.watch.phase("synthesis"):
            share_buffers(self.student)
            made = self._counted(call)
            self._losses = check_call(call, self.synthesizer, made)
            self.pool.add(made.images)

    def _counted(self, call: int) -> Synthesis:
        """A call. FLOPs are counted at the first of each class of calls: the counter sees every operation, which
        takes time."""
        kind = self.synthesis.cost_class(call)
        counter = FlopCounter()
        with self.autocast, nullcontext() if kind in self._call_flops else counter:
            made = self.synthesizer.synthesize(call)
        flops = self._call_flops.setdefault(kind, counter.total)
        self._spent_flops += flops * self.world
        return made

    def _batch(self, inputs: Tensor, index: Tensor, weight: Tensor) -> Batch:
        inputs = inputs.contiguous(memory_format=self.real.appearance.memory_format)
        with self.autocast:
            target = teacher_logits(self.teacher, inputs)
        return {"inputs": inputs, "target": target, "index": index, "weight": weight.to(self.device)}
