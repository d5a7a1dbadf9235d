"""The loop: epochs, steps, checkpoints. One for every task and every method.

A step itself is the learner's (`learner.py`). Nothing in it waits for the device: losses, scores and the alarm
stay there, and the learning rate is a function of a progress that is known before the epoch starts. A run that
is interrupted anywhere and resumed gives the numbers of the uninterrupted one, because everything random is a
function of (seed, epoch, sample), and what is not (dropout's generator, what the pruner has settled) is in the
checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raytrain_speedup.config import Experiment
from raytrain_speedup.data.batch import WARM_UP, Batch, BatchSource, Step, blank, draw_keys
from raytrain_speedup.engine.alarm import LossAlarm, NonFinite
from raytrain_speedup.engine.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointFailed,
    random_state,
    rank_file,
    read_own,
    read_shared,
    restore_random_state,
    snapshot,
)
from raytrain_speedup.engine.cost.costs import Costs
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.cost.reference import NoReference, Reference
from raytrain_speedup.engine.cost.tally import Tally
from raytrain_speedup.engine.evaluate import Evaluator
from raytrain_speedup.engine.identity import check_same, identity
from raytrain_speedup.engine.learner import Learner
from raytrain_speedup.engine.learning_rate import learning_rate
from raytrain_speedup.engine.lookout import Lookout
from raytrain_speedup.engine.reporter import Notice, Reporter
from raytrain_speedup.engine.steps import epoch_steps
from raytrain_speedup.methods.curriculum.base import Stage, scaled_lr
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import Split, Task

log = logging.getLogger("raytrain_speedup")

POSITION = ("epoch", "next_step", "next_sample")

WRITES_IN_TURN = ("cpu",)
"""Devices whose steps wait until a checkpoint is written: a thread beside them would take the cores that they train
on, and runs would say that they were disturbed (seen of the README's sweep on two cores)."""


class Stopped(UserError):
    """The user asked to stop; the message names the checkpoint to go on from."""

    exit_code = 130


class Loop:
    """Trains one model.

    Args:
        experiment: what to do.
        model: on its device.
        task: losses and metric.
        loader: batches of the training, validation and test splits.
        pruner: plans every epoch.
        budget: progress as a function of the samples shown.
        reporter: where metrics and checkpoints go.
        flops: training FLOPs of one sample by input size and fraction of the tokens kept.
        watch: counts the seconds.
        frozen_models: networks that take part without being trained, kept in the checkpoint by name.
        timed: whether its cost is counted in reference steps.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        model: nn.Module,
        task: Task,
        loader: BatchSource,
        pruner: Pruner,
        budget: Budget,
        flops: Mapping[tuple[int | None, float], float],
        reporter: Reporter,
        watch: Stopwatch,
        frozen_models: Mapping[str, nn.Module] | None = None,
        timed: bool = True,
    ) -> None:
        train = experiment.train
        self.experiment, self.train = experiment, train
        self.model, self.task, self.loader, self.pruner = model, task, loader, pruner
        self.budget, self.reporter, self.watch = budget, reporter, watch
        self.lookout = Lookout(reporter, train.checkpoint_minutes)
        self.frozen_models = frozen_models or {}
        self.device, self.full_size = watch.device, loader.size
        self.learner = Learner(
            model,
            task,
            train,
            device=self.device,
            rank=reporter.rank,
            world=reporter.world,
            full_size=self.full_size,
            full_steps=train.epochs * budget.num_samples / train.batch_size,
        )
        self.evaluator = Evaluator(
            task,
            loader,
            size=self.full_size,
            batch_size=train.batch_size,
            world=reporter.world,
            autocast=self.learner.autocast,
        )
        self.alarm = LossAlarm(self.device)
        self.reference: Reference | NoReference = self._yardstick() if timed else NoReference()
        self.epoch = 0
        self.next_step = 0  # of the epoch in progress
        self.next_sample = 0  # of its plan; another number of workers may cut the rest of it in other steps
        self.tally = Tally(
            budget.num_samples, flops, device=self.device, rank=reporter.rank, world=reporter.world
        )
        self.workers: dict[int, list[int]] = {}  # by epoch, one after another: how many trained it
        self.last_val: dict[str, float] = {}
        self.has_val = loader.has_val
        self.identity = identity(experiment, loader.splits.fingerprint)

    def _yardstick(self) -> Reference:
        train, world = self.train, self.reporter.world
        return Reference(
            self.model,
            self.task,
            self.loader.splits.input_shape(),
            batch_size=train.batch_size // world // train.accumulate,
            budget_samples=train.epochs * self.budget.num_samples / world,
            watch=self.watch,
            autocast=self.learner.autocast,
            channels_last=train.channels_last,
        )

    # --- the run ---------------------------------------------------------------------------------------

    def warm_up(self, stages: Sequence[Stage]) -> None:
        """A step of every stage, so that decoding the set, starting its processes, compiling and autotuning
        are over before the clock starts."""
        steps = [self.warm_up_step(stage, parts=self.train.accumulate) for stage in stages]
        verb = "compiling" if self.train.compile else "warming up"
        with self.learner.warming_up():
            self.reporter.phase("loading the first batch")
            batches = self.loader.train_batches(steps, epoch=0)
            for number, (step, batch) in enumerate(zip(steps, batches, strict=True), 1):
                self.reporter.phase(f"{verb}, stage {number} of {len(steps)}")
                self.learner.warm_up(step.stage, self._drawing(batch, step))
            self.reference.warm_up()

    def warm_up_step(self, stage: Stage, *, number: int = WARM_UP, parts: int = 1) -> Step:
        """A step of a stage, on this worker, whose samples mean nothing; or one of `parts` of it."""
        wished = self.train.batch_size * stage.batch_factor // self.reporter.world // parts
        fresh = max(1, min(wished, self.budget.num_samples) // stage.replay)
        index = (torch.arange(fresh) + max(number, 0) * fresh) % self.budget.num_samples
        return Step(number, index, torch.ones(fresh), fresh * stage.replay, 0.0, stage)

    def fit(self) -> None:
        """Train until the budget is spent.

        Raises:
            NonFinite: naming the step and the last good checkpoint.
            CheckpointFailed: naming the checkpoint before.
            Stopped: after the checkpoint the user's stop asked for.
        """
        if isinstance(self.reference, Reference):
            self.reporter.phase("timing the reference step")
        with self.naming_last_checkpoint():
            self.reference.measure()
            if self.frozen_models and self.train.checkpoint_every and not self.reporter.has_checkpoint():
                self._save_partial()  # so that a teacher is not trained again
            last = len(self.budget.epoch_ends()) - 1
            while self.epoch <= last:
                plan = self.train_epoch()
                if self.epoch == last:
                    self.reference.measure()
                self.finish_epoch(plan)

    @contextmanager
    def naming_last_checkpoint(self) -> Iterator[None]:
        """Add to the message of a failure what is left of the run."""
        try:
            yield
        except (NonFinite, CheckpointFailed) as error:
            last = self.reporter.last
            left = f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"
            raise type(error)(f"{error}; {left}") from error

    def train_epoch(self) -> EpochPlan:
        """One epoch, or the rest of the one a checkpoint was taken in; gives what was shown.

        Every rank plans it, here and not beside the evaluation before: of 14.2 million samples that is .5 to .9
        core-seconds in an epoch of minutes, less than .5 %, and out of sight it would be nobody's cost
        (`tests/benchmarks/results/cpu-planning.md`).
        """
        self.reporter.phase(f"planning epoch {self.epoch + 1}")
        with self.watch.phase("train"):
            plan = self.pruner.plan(self.epoch)  # the same again if the epoch had begun
            self.reporter.phase(f"the first step of epoch {self.epoch + 1}")
            for _ in self.loader.prepare(self.epoch):
                self._between_parts()
            steps = epoch_steps(
                plan,
                self.budget,
                self.epoch,
                batch_size=self.train.batch_size,
                rank=self.reporter.rank,
                world=self.reporter.world,
                taken=(self.next_step, self.next_sample),
            )
            ends = [*(step.progress for step in steps), self.budget.epoch_ends()[self.epoch]][1:]
            total = self.next_step + len(steps)
            batches = self.loader.train_batches(steps, epoch=self.epoch)
            self._count_workers()
            self.model.train()
            for step, batch, end in zip(steps, batches, ends, strict=True):
                self.train_step(step, batch, advance=end - step.progress)
                self.tally.flops_spent += self.loader.spent_flops()
                self.tally.took(self.loader.bytes_taken())
                self.next_step = step.number + 1
                self.next_sample += step.count // step.stage.replay
                self._between_steps(total)
            self.pruner.exchange()
        return plan

    def train_step(self, step: Step, batch: Batch, *, advance: float) -> None:
        """One optimizer step and what is counted of it; `advance` is the progress it makes."""
        if not len(batch["inputs"]):  # not one sample of this rank's part could be read
            if self.reporter.world == 1:
                return
            batch = blank(batch)  # the other ranks wait for this one's gradients
        batch = self._drawing(batch, step)
        rule = self.experiment.curriculum.lr_rule
        lr = learning_rate(step.progress, self.train) * scaled_lr(step.stage.batch_factor, rule)
        losses = self.learner.step(step, batch, lr=lr, epoch=self.epoch, advance=advance)
        read = len(batch["index"]) // step.stage.replay  # shown again, a sample has its score already
        index = batch["index"][:read]
        if losses.strata is not None:
            self.pruner.stratify(index, losses.strata[:read])
        self.pruner.observe(index, losses.scores[:read])
        self.tally.count(step, losses.weighted_sum, batch["weight"], losses.rows)
        self.alarm.note(self.tally.steps_taken, losses.weighted_sum)

    def _drawing(self, batch: Batch, step: Step) -> Batch:
        """The batch with the keys of what the task draws for its samples, if it does."""
        if not self.task.draws:
            return batch
        keys = draw_keys(batch["index"], step, seed=self.train.seed, epoch=self.epoch)
        return batch | {"draws": keys.to(self.device)}

    def _count_workers(self) -> None:
        counts = self.workers.setdefault(self.epoch, [])
        if counts[-1:] != [self.reporter.world]:
            counts.append(self.reporter.world)

    def _epoch_fraction(self) -> float:
        """How much of the epoch is shown: the budget may end within the last one."""
        last = self.epoch == len(self.budget.epoch_ends()) - 1
        return self.budget.last_epoch_fraction if last else 1.0

    # --- what the outside sees -------------------------------------------------------------------------

    def _between_parts(self) -> None:
        """A stop while the loader prepares an epoch."""
        self.tally.flops_spent += self.loader.spent_flops()
        if self.reporter.should_stop():
            self._save_partial()
            self.reporter.settle()
            raise Stopped(
                f"stopped before the first step of epoch {self.epoch + 1}; "
                f"the checkpoint is {self.reporter.last}"
            )
        due, notice = self.lookout.look()
        if due or notice:
            self._save_partial()
        self._heed(notice)

    def _between_steps(self, steps: int) -> None:
        """A reference step, progress for the terminal, a checkpoint in the middle of the epoch, a stop."""
        progress = self.budget.progress(self.epoch, self.next_step / steps * self._epoch_fraction())
        if self.reference.due(progress):
            self.reference.measure(progress)
        self.reporter.progress(
            {
                "epoch": self.epoch + 1,
                "epochs": len(self.budget.epoch_ends()),
                "progress": progress,
                "samples_shown": self.tally.samples_shown,
                "steps": self.tally.steps_taken,
            }
        )
        stop = self.reporter.should_stop()
        due, notice = self.lookout.look()
        if every := self.train.checkpoint_steps:
            due = due or self.next_step % every == 0
        if self.next_step == steps and self._saves(self.epoch + 1):
            due = False  # the epoch's end is next
        if stop or notice or due:
            self._save_partial()
        if stop:
            self.reporter.settle()
            raise Stopped(
                f"stopped in epoch {self.epoch + 1} after step {self.next_step} of {steps}; "
                f"the checkpoint is {self.reporter.last}"
            )
        self._heed(notice)

    def _heed(self, notice: Notice | None) -> None:
        """What a notice asked for is saved: go on elsewhere, or here to the end."""
        if notice is None:
            return
        self.reporter.settle()
        if self.reporter.rank == 0:
            log.warning("%s: the checkpoint is %s", notice, self.reporter.last)
        self.reporter.leave(notice)

    def _saves(self, epoch: int) -> bool:
        """Whether a checkpoint is taken when so many epochs are over."""
        every = self.train.checkpoint_every
        return bool(every) and (epoch == len(self.budget.epoch_ends()) or epoch % every == 0)

    def _save_partial(self) -> None:
        """A checkpoint within an epoch, or before the first."""
        self.pruner.exchange()
        self.alarm.check(self.tally.steps_taken, self.model)
        with self.watch.phase("checkpoint"):
            self.reporter.report({"epoch": self.epoch, "partial": True}, self.save())
        self._written_in_turn()

    def _written_in_turn(self) -> None:
        if self.device.type in WRITES_IN_TURN:
            with self.watch.phase("checkpoint"):
                self.reporter.close()

    def finish_epoch(self, plan: EpochPlan) -> None:
        """Check losses and weights, evaluate, checkpoint and report."""
        self.alarm.check(self.tally.steps_taken, self.model)
        metrics: dict[str, float | int | str | bool] = {
            "epoch": self.epoch + 1,
            "progress": self.budget.epoch_ends()[self.epoch],
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            "train_loss": self.tally.mean_loss(),
            "kept_fraction": plan.kept_fraction,
            "workers": self.reporter.world,
            "metric": self.task.metric,
            "direction": self.task.direction,
            **{f"plan_{name}": value for name, value in plan.stats.items()},
        }
        self.epoch, self.next_step, self.next_sample = self.epoch + 1, 0, 0
        last = self.epoch == len(self.budget.epoch_ends())
        due = last or (self.train.eval_every and self.epoch % self.train.eval_every == 0)
        if due and self.has_val:
            self.last_val = self.evaluate("val")
            metrics |= {f"val_{name}": value for name, value in self.last_val.items()}
        checkpoint = self.save() if self._saves(self.epoch) else None
        metrics |= self.costs().to_dict()
        metrics |= self.loader.metrics()
        if due and self.reporter.rank == 0:
            for name, image in self.images().items():
                self.reporter.image(name, self.epoch, image)
        self.reporter.report(metrics, checkpoint)
        self._written_in_turn()

    def images(self) -> dict[str, bytes]:
        """PNG files by name: what the loader has to show, and what the task shows of the network. Called on one
        rank."""
        with self.watch.phase("eval"):
            return self.loader.images() | self.evaluator.images(self.learner.result)

    def costs(self) -> Costs:
        """What was spent up to now."""
        return self.tally.costs(self.watch.read(), self.reference.metrics())

    def evaluate(self, split: Split) -> dict[str, float]:
        """The task's metrics of the averaged weights, or of the weights where no average is kept."""
        return self._evaluate(self.learner.result, split)

    def evaluate_frozen(self) -> dict[str, float]:
        """The test metric of every network that takes part without being trained."""
        metric = self.task.metric
        return {
            f"{name}_{metric}": self._evaluate(network, "test")[metric]
            for name, network in self.frozen_models.items()
        }

    def _evaluate(self, network: nn.Module, split: Split) -> dict[str, float]:
        with self.watch.phase("eval"):
            return self.evaluator(network, split)

    # --- checkpoints -----------------------------------------------------------------------------------

    def save(self, more: Mapping[str, Any] | None = None) -> Checkpoint:
        """This rank's part of a checkpoint, as the run is now; `more` are files of rank 0's by name."""
        with self.watch.phase("checkpoint"):
            folder = self.reporter.new_folder()
            shared, rank = self.state_dict(), self.reporter.rank
            files = {rank_file(rank): {"random": random_state(), "loader": self.loader.state_dict()}}
            if rank == 0:
                files |= {"run.pt": shared, **(more or {})}
            self.lookout.saved()
            return Checkpoint(folder, snapshot(files))

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint, whatever number of workers wrote it.

        Raises:
            UserError: if it is damaged, or of another experiment.
        """
        shared, own = read_shared(folder, self.device), read_own(folder, self.reporter.rank)
        check_same(shared["identity"], self.identity, f"{folder} is a checkpoint")
        self.identity = shared["identity"]  # it knows the files that are gone
        self.load_state_dict(shared)
        if own is not None:
            restore_random_state(own["random"])
            self.loader.load_state_dict(own["loader"])
        elif (first := read_own(folder, 0)) is not None:
            self.loader.join(first["loader"])

    def state_dict(self) -> dict[str, Any]:
        """Everything all ranks share; called on all of them."""
        return {
            "identity": self.identity,
            **self.learner.state_dict(),
            "pruner": self.pruner.state_dict(),
            "frozen_models": {name: module.state_dict() for name, module in self.frozen_models.items()},
            "seconds": self.watch.state_dict(),
            "reference": self.reference.state_dict(),
            "workers": self.workers,
            **self.tally.state_dict(),
            **{name: getattr(self, name) for name in POSITION},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        self.learner.load_state_dict(state)
        self.pruner.load_state_dict(state["pruner"])
        self.watch.load_state_dict(state["seconds"])
        self.reference.load_state_dict(state["reference"])
        self.tally.load_state_dict(state)
        self.workers = state["workers"]
        for name in POSITION:
            setattr(self, name, state[name])
