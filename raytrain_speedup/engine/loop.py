"""The loop: epochs, steps, checkpoints. One for every task and every method.

Nothing in a step waits for the device: losses, scores and the alarm stay there, and the learning rate is a
function of a progress that is known before the epoch starts. A run that is interrupted anywhere and resumed
gives the numbers of the uninterrupted one, because everything random is a function of (seed, epoch, sample),
and what is not (dropout's generator, what the pruner has settled) is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import Loader
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.engine.alarm import LossAlarm, NonFiniteLoss
from raytrain_speedup.engine.checkpoint import (
    CheckpointFailed,
    random_state,
    read_checkpoint,
    restore_random_state,
    write_checkpoint,
)
from raytrain_speedup.engine.ema import MovingAverage
from raytrain_speedup.engine.evaluate import evaluate
from raytrain_speedup.engine.learning_rate import learning_rate
from raytrain_speedup.engine.measure import Stopwatch
from raytrain_speedup.engine.mixing import mix_batch
from raytrain_speedup.engine.optimizer import build_optimizer, set_learning_rate
from raytrain_speedup.engine.reporter import Reporter
from raytrain_speedup.engine.steps import epoch_steps
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import Task

COUNTERS = ("epoch", "next_step", "steps_taken", "samples_shown", "compute_spent", "flops_spent")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stopped(UserError):
    """The user asked to stop; the message names the checkpoint to go on from."""

    exit_code = 130


class Loop:
    """Trains one model.

    Args:
        experiment: what to do.
        model: on its device; it is wrapped for several workers and compiled here.
        task: losses and metric.
        loader: batches of the training, validation and test splits.
        pruner: plans every epoch.
        budget: progress as a function of the samples shown.
        reporter: where figures and checkpoints go.
        flops: training FLOPs of one sample by input size.
        watch: counts the seconds.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        model: nn.Module,
        task: Task,
        loader: Loader,
        pruner: Pruner,
        budget: Budget,
        flops: Mapping[int | None, float],
        reporter: Reporter,
        watch: Stopwatch,
    ) -> None:
        train = experiment.train
        self.experiment, self.train = experiment, train
        self.model, self.task, self.loader, self.pruner = model, task, loader, pruner
        self.budget, self.flops, self.reporter, self.watch = budget, flops, reporter, watch
        self.device = watch.device
        self.optimizer = build_optimizer(model, train)
        full_steps = train.epochs * budget.num_samples / train.batch_size
        self.ema = MovingAverage(model, train.ema_decay, full_steps) if train.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self.autocast = torch.autocast(
            self.device.type, DTYPES[train.precision], enabled=train.precision != "fp32"
        )
        self.parallel = (
            DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
            if reporter.world > 1
            else None
        )
        self.forward: Callable[[Tensor], Tensor] = self.parallel or model
        if train.compile:
            self.forward = torch.compile(self.forward)
        self.alarm = LossAlarm(self.device)
        self.epoch = 0
        self.next_step = 0  # of the epoch in progress
        self.steps_taken = 0
        self.samples_shown = 0
        self.compute_spent = 0.0  # in epoch equivalents
        self.flops_spent = 0.0
        self.last_val: dict[str, float] = {}
        self._sums = torch.zeros(2, device=self.device)  # weighted losses, weights

    # --- the run ---------------------------------------------------------------------------------------

    def warm_up(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """A forward and a backward pass for every input shape (C, H, W), so that compiling and autotuning
        are over before the clock starts. Nothing of it stays: neither gradients nor statistics nor draws."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        random = random_state()
        samples = max(2, self.train.batch_size // self.reporter.world // self.train.accumulate)
        self.model.train()
        for shape in shapes:
            inputs = torch.zeros((samples, *shape), device=self.device)
            if self.train.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self.autocast:
                output = self.forward(inputs)
            output.float().sum().backward()
        self.model.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        restore_random_state(random)

    def fit(self) -> None:
        """Train until the budget is spent.

        Raises:
            NonFiniteLoss: naming the step and the last good checkpoint.
            CheckpointFailed: naming the checkpoint before.
            Stopped: after the checkpoint the user's stop asked for.
        """
        try:
            while self.epoch < len(self.budget.epoch_ends()):
                self.finish_epoch(self.train_epoch())
        except (NonFiniteLoss, CheckpointFailed) as error:
            raise type(error)(
                f"{error}; the last good checkpoint is {self.reporter.latest() or 'none'}"
            ) from error

    def train_epoch(self) -> EpochPlan:
        """One epoch, or the rest of the one a checkpoint was taken in; gives what was shown."""
        with self.watch.phase("train"):
            plan = self.pruner.plan(self.epoch)  # the same again if the epoch had begun
            steps = epoch_steps(
                plan,
                self.budget,
                self.epoch,
                batch_size=self.train.batch_size,
                rank=self.reporter.rank,
                world=self.reporter.world,
            )
            ends = [step.progress for step in steps[1:]] + [self.budget.epoch_ends()[self.epoch]]
            rest = steps[self.next_step :]
            self.model.train()
            for step, batch in zip(rest, self.loader.train_batches(rest, epoch=self.epoch), strict=True):
                self.train_step(step, batch, advance=ends[step.number] - step.progress)
                self.next_step = step.number + 1
                self._between_steps(len(steps))
            self.pruner.exchange()
        return plan

    def train_step(self, step: Step, batch: Batch, *, advance: float) -> None:
        """One optimizer step; `advance` is the progress it makes."""
        if not len(batch["inputs"]):  # not one sample of it could be read
            return
        set_learning_rate(self.optimizer, learning_rate(step.progress, self.train))
        inputs, mix = mix_batch(
            batch["inputs"], batch["weight"], self.train, key=(self.train.seed, self.epoch, step.number)
        )
        target, weight = batch["target"], batch["weight"]
        mixed_target = None if mix is None else target[mix.partner]
        own_losses, partner_losses = [], []
        pieces = _pieces(len(inputs), self.train.accumulate)
        step_loss = torch.zeros((), device=self.device)
        for piece in pieces:
            with self._no_sync(unless=piece is pieces[-1]):
                with self.autocast:
                    output = self.forward(inputs[piece])
                own = loss = self.task.losses(output, target[piece])
                if mix is not None and mixed_target is not None:
                    others = self.task.losses(output, mixed_target[piece])
                    loss = mix.share * own + (1 - mix.share) * others
                    partner_losses.append(others.detach())
                weighted = (loss * weight[piece]).sum()
                # The mean is over the samples of all ranks, and DDP divides by the number of ranks.
                self.scaler.scale(weighted / step.count * self.reporter.world).backward()
            own_losses.append(own.detach())
            step_loss += weighted.detach()
        scores = torch.cat(own_losses)
        if mix is not None:
            scores = mix.scores(scores, torch.cat(partner_losses))
        self.pruner.observe(batch["index"], scores)
        self._step_optimizer()
        if self.ema is not None:
            self.ema.update(self.model, advance)
        self.alarm.note(self.steps_taken, step_loss)
        self._sums += torch.stack([step_loss, weight.sum()])
        self.steps_taken += 1
        self.samples_shown += step.count
        self.compute_spent += step.count * step.stage.cost / self.budget.num_samples
        self.flops_spent += step.count * self.flops[step.stage.size]

    def _step_optimizer(self) -> None:
        if self.train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _epoch_share(self) -> float:
        """How much of the epoch is shown: the budget may end within the last one."""
        last = self.epoch == len(self.budget.epoch_ends()) - 1
        return self.budget.last_epoch_share if last else 1.0

    def _no_sync(self, *, unless: bool) -> AbstractContextManager[None]:
        return nullcontext() if unless or self.parallel is None else self.parallel.no_sync()

    # --- what the outside sees -------------------------------------------------------------------------

    def _between_steps(self, steps: int) -> None:
        """Progress for the terminal, a checkpoint in the middle of the epoch, a stop."""
        self.reporter.progress(
            {
                "epoch": self.epoch + 1,
                "epochs": len(self.budget.epoch_ends()),
                "progress": self.budget.progress(self.epoch, self.next_step / steps * self._epoch_share()),
                "samples_shown": self.samples_shown,
            }
        )
        stop = self.reporter.should_stop()
        every = self.train.checkpoint_steps
        if stop or (every and self.next_step % every == 0 and self.next_step < steps):
            self.pruner.exchange()
            self.alarm.check()
            folder = self.save()
            self.reporter.report({"epoch": self.epoch, "partial": True}, folder)
        if stop:
            raise Stopped(f"stopped in epoch {self.epoch} after step {self.next_step}; checkpoint: {folder}")

    def finish_epoch(self, plan: EpochPlan) -> None:
        """Check the losses, evaluate, checkpoint and report."""
        self.alarm.check()
        figures: dict[str, float | int | str | bool] = {
            "epoch": self.epoch + 1,
            "progress": self.budget.epoch_ends()[self.epoch],
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self._mean_loss(),
            "kept_share": plan.kept_share,
            **{f"plan_{name}": value for name, value in plan.stats.items()},
        }
        self.epoch, self.next_step = self.epoch + 1, 0
        last = self.epoch == len(self.budget.epoch_ends())
        if last or (self.train.eval_every and self.epoch % self.train.eval_every == 0):
            self.last_val = self.evaluate("val")
            figures |= {f"val_{name}": value for name, value in self.last_val.items()}
        every = self.train.checkpoint_every
        folder = self.save() if every and (last or self.epoch % every == 0) else None
        figures |= self.costs()
        self.reporter.report(figures, folder)

    def costs(self) -> dict[str, float]:
        """What was spent up to now."""
        seconds = self.watch.read()
        return {
            **seconds,
            "samples_shown": self.samples_shown,
            "samples_per_second": self.samples_shown / max(seconds["train_seconds"], 1e-9),
            "compute_spent": self.compute_spent,
            "train_flops": self.flops_spent,
        }

    def evaluate(self, split: Literal["val", "test"]) -> dict[str, float]:
        """The task's figures of the averaged weights, or of the weights where no average is kept."""
        with self.watch.phase("eval"):
            model = self.ema.module if self.ema is not None else self.model
            return evaluate(
                model,
                self.task,
                self.loader,
                split,
                batch_size=self.train.batch_size // self.reporter.world,
                autocast=self.autocast,
            )

    def _mean_loss(self) -> float:
        """The weighted mean of the losses since the last call, over all ranks."""
        if self.parallel is not None:
            dist.all_reduce(self._sums)
        total, weight = self._sums.tolist()
        self._sums.zero_()
        return total / weight

    # --- checkpoints -----------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint and name its folder."""
        with self.watch.phase("checkpoint"):
            folder = self.reporter.new_folder()
            shared = self.state_dict() if self.reporter.rank == 0 else None
            write_checkpoint(folder, shared, rank=self.reporter.rank)
            return folder

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint, whatever number of workers wrote it."""
        shared, random = read_checkpoint(folder, rank=self.reporter.rank, device=self.device)
        self.load_state_dict(shared)
        if random is not None:
            restore_random_state(random)

    def state_dict(self) -> dict[str, Any]:
        """Everything all ranks share."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "pruner": self.pruner.state_dict(),
            "seconds": self.watch.state_dict(),
            "sums": self._sums,
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.pruner.load_state_dict(state["pruner"])
        self.watch.load_state_dict(state["seconds"])
        self._sums.copy_(state["sums"])
        for name in COUNTERS:
            setattr(self, name, state[name])


def _pieces(length: int, parts: int) -> list[slice]:
    """`length` samples in at most `parts` pieces of nearly equal size."""
    parts = min(parts, length)
    return [slice(length * part // parts, length * (part + 1) // parts) for part in range(parts)]
