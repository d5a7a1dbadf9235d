"""The learner: a model and all that changes it, one optimizer step at a time.

It knows the batch and the stage of a step, and nothing of epochs, budgets and checkpoints: those are the
loop's (`loop.py`). Nothing in a step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain_speedup.config import TrainSettings
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.engine.checkpoints.checkpoint import random_state, restore_random_state
from raytrain_speedup.engine.cost.measure import within_memory
from raytrain_speedup.engine.ema import MovingAverage
from raytrain_speedup.engine.mixing import Mix, mix_batch
from raytrain_speedup.engine.optimizer import build_optimizer, set_learning_rate
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.models.batch_norm import share_statistics, uncounted
from raytrain_speedup.models.resize import at_size, change_size, size_of
from raytrain_speedup.models.tokens import keep_tokens
from raytrain_speedup.randomness import seeds
from raytrain_speedup.tasks import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepLosses(NamedTuple):
    """What a step found, on the device."""

    weighted_sum: Tensor
    """() of this rank's part, by the samples' weights."""

    scores: Tensor
    """(b,) of the samples of the batch, unweighted."""

    strata: Tensor | None
    """(b,) of the same samples, where the task tells them."""
    rows: int
    """How many inputs the model was asked with: b, or fewer where samples were packed."""


class Learner:
    """Trains one model.

    Args:
        model: on its device; it is wrapped for several workers and compiled here.
        task: says what the losses are.
        train: optimizer, mixing, numerics.
        device: where the model is.
        rank, world: this worker among all that share every step. What a network draws in training (dropout,
            stochastic depth) is from here on a function of the seed and the rank; what drew its first
            weights was the same on all.
        full_size: size of an input at full resolution.
        full_steps: optimizer steps of the budget at full data; the moving average is told by them.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        train: TrainSettings,
        *,
        device: torch.device,
        rank: int,
        world: int,
        full_size: int,
        full_steps: float,
    ) -> None:
        self.model, self.task, self.train = model, task, train
        self.device, self.world, self.full_size = device, world, full_size
        self.optimizer = build_optimizer(model, train)
        self.ema = MovingAverage(model, train.ema_decay, full_steps) if train.ema_decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self.autocast = torch.autocast(
            device.type, DTYPES[train.precision], enabled=train.precision != "fp32"
        )
        if train.sync_batch_norm:
            share_statistics(model, world)
        self._warm: set[tuple[torch.Size, ...]] = set()  # shapes of arguments that the warm-up has met
        self._warming = False
        self._wrap()
        if rank:  # rank 0 goes on as a single worker does
            torch.manual_seed(*seeds(1, train.seed, rank))

    def _wrap(self) -> None:
        """Put the model behind DDP and compile it; again whenever its parameters change their shapes."""
        self.parallel = None
        self.eager: Callable[..., Any] = self.model
        if self.world > 1:
            on_gpu = self.device.type == "cuda"
            self.parallel = DistributedDataParallel(self.model, device_ids=[self.device] if on_gpu else None)
            self.eager = self.parallel
        # A static graph per stage. Left to itself, torch would make sizes symbolic at the second stage.
        self.compiled = torch.compile(self.eager, dynamic=False) if self.train.compile else None

    def forward(self, *inputs: Any) -> Any:
        """The model as a task calls it, in the run's arithmetic, compiled for the shapes of the warm-up. The
        remainder of an epoch, which pruning makes another one every time, is not worth a compilation."""
        shapes = tuple(given.shape if isinstance(given, Tensor) else given for given in inputs)
        if self._warming:
            self._warm.add(shapes)
        use = self.compiled if self.compiled is not None and shapes in self._warm else self.eager
        with self.autocast:
            return use(*inputs)

    @property
    def averaged(self) -> nn.Module | None:
        """The moving average of the model, where one is kept."""
        return self.ema.module if self.ema is not None else None

    @property
    def result(self) -> nn.Module:
        """What is evaluated and handed on: the average, or the model where none is kept."""
        return self.averaged or self.model

    def enter(self, stage: Stage) -> None:
        """Make the model, its moments and its average take the inputs of a stage."""
        keep_tokens(self.model, stage.tokens)
        size = stage.size or self.full_size
        if size_of(self.model) in (None, size):
            return
        change_size(self.model, size, optimizer=self.optimizer, ema=self.averaged)
        if self.parallel is not None:
            self._wrap()

    # --- warm-up ---------------------------------------------------------------------------------------

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Nothing of the steps inside stays: neither statistics nor draws."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        random = random_state()
        self.model.train()
        self._warming = True
        yield
        self._warming = False
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        restore_random_state(random)

    def warm_up(self, stage: Stage, batch: Batch) -> None:
        """A forward and a backward pass, so that its compilation is over before the clock starts."""
        size = stage.size or self.full_size
        keep_tokens(self.model, stage.tokens)
        with self._at_size(size), within_memory(len(batch["inputs"]), size, self.task.inputs):
            self.task.losses(self.forward, batch).losses.sum().backward()
            self.model.zero_grad(set_to_none=True)

    @contextmanager
    def _at_size(self, size: int) -> Iterator[None]:
        """The model at another size for the length of a `with`, on all workers at once. What is compiled meanwhile
        is kept: the wrapper that the stage begins with finds it by the shapes of the parameters."""
        changes = self.parallel is not None and size_of(self.model) not in (None, size)
        with at_size(self.model, size):
            if changes:
                self._wrap()
            yield
        if changes:
            self._wrap()

    # --- a step ----------------------------------------------------------------------------------------

    def step(self, step: Step, batch: Batch, *, lr: float, epoch: int, advance: float) -> StepLosses:
        """One optimizer step; `advance` is the progress it makes."""
        self.enter(step.stage)
        set_learning_rate(self.optimizer, lr)
        batch, mix = mix_batch(batch, self.train, key=(self.train.seed, epoch, step.number))
        # Rounded up: elastic workers may have a sample more or less of a step.
        whole = math.ceil(self.train.batch_size * step.stage.batch_factor / self.world)
        pieces = _pieces(len(batch["inputs"]), whole, self.train.accumulate)
        with nullcontext() if len(batch["index"]) else uncounted():
            losses = self._backward(batch, mix, pieces, count=step.count)
        self._step_optimizer()
        if self.ema is not None:
            self.ema.update(self.model, advance)
        return losses

    def _backward(self, batch: Batch, mix: Mix | None, pieces: Sequence[slice], *, count: int) -> StepLosses:
        """Gradients of the mean over the `count` samples of all ranks, piece by piece."""
        scores, partner_scores, strata = [], [], []
        step_loss, rows = torch.zeros((), device=self.device), 0
        for piece in pieces:
            part = {name: rows[piece] for name, rows in batch.items()}
            with self._no_sync(unless=piece is pieces[-1]):
                found = self.task.losses(self.forward, part)
                weighted = (found.losses * part["weight"]).sum()
                # The mean is over the samples of all ranks, and DDP divides by the number of ranks.
                self.scaler.scale(weighted / count * self.world).backward()
            scores.append(found.scores.detach())
            if found.partner_scores is not None:
                partner_scores.append(found.partner_scores.detach())
            if found.strata is not None:
                strata.append(found.strata)
            step_loss += weighted.detach()
            rows += len(found.losses) if found.rows is None else found.rows
        own = torch.cat(scores)
        if mix is not None:
            own = mix.scores(own, torch.cat(partner_scores))
        return StepLosses(step_loss, own, torch.cat(strata) if strata else None, rows)

    def _step_optimizer(self) -> None:
        if self.train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _no_sync(self, *, unless: bool) -> AbstractContextManager[None]:
        return nullcontext() if unless or self.parallel is None else self.parallel.no_sync()

    # --- its state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The same on all workers."""
        return {
            "size": size_of(self.model),
            "model": self.model.state_dict(),
            "ema": self.averaged.state_dict() if self.averaged is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        if state["size"] is not None:
            change_size(self.model, state["size"], ema=self.averaged)
            if self.parallel is not None:
                self._wrap()
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _pieces(length: int, whole: int, parts: int) -> list[slice]:
    """`length` samples in pieces of nearly equal size, as large as those of a `whole` batch in `parts` pieces: the
    few samples that are left at the end of an epoch are one piece, for batch normalisation needs several."""
    wanted = min(parts, max(1, -(-length * parts // whole)))
    return [slice(length * part // wanted, length * (part + 1) // wanted) for part in range(wanted)]
