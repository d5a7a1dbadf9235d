"""The epochs of a pruned run on one process: which batches, how each loss counts, where the run stands.

An optimizer step is `batch_size` samples x `accumulate` batches x processes. The engine's `epoch_steps` cuts the
plan of an epoch into steps and the steps into parts; here every part is one batch, so that all processes take the
same steps as the engine, each step has exactly `accumulate` batches, and none is left over at the end of an epoch,
whose gradient would leak into the next one. The samples that are left at the end are a smaller step, again of
`accumulate` batches, and join the step before where they are fewer than two a batch.

The loss of a batch is `(losses * weight).sum() / count * processes`, where `count` are the samples of the whole
step: gradients add up over the batches of a step, and DDP takes their mean over the processes. A `.mean()` is
right on one process without accumulation only.

Where the run stands is counted by the losses that were given, not by the batches handed out: loops look ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.steps import epoch_steps
from raytrain_speedup.methods.curriculum import CurriculumSettings, NoCurriculum
from raytrain_speedup.methods.curriculum.base import FULL, scaled_lr
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.plain_loop import loop_budget, loop_pruner
from raytrain_speedup.methods.pruning import Pruner, PrunerSettings
from raytrain_speedup.methods.pruning.base import TOLERANCE
from raytrain_speedup.schedule import Schedule, load_schedule
from raytrain_speedup.settings import UserError

Pruning = Pruner | PrunerSettings | Schedule | str | Path
"""A pruner, the settings of one, a schedule (whose curriculum counts too), or the path of a schedule file."""

Group = dist.ProcessGroup | DeviceMesh
"""Processes that share every step."""


class PrunedEpochs:
    """What `PrunedLoader` and `PrunedBatchSampler` have in common.

    Args:
        num_samples: N, the size of the data set.
        pruning: see `Pruning`. A pruner's epochs are those of the run.
        batch_size: samples of a batch on one process, as of a `DataLoader`.
        epochs: the budget in passes over the data at full size, unless `pruning` is a pruner. A curriculum, whose
            samples are cheaper, makes more passes for it, a schedule that saves by fewer epochs makes fewer:
            `self.epochs` are the passes.
        accumulate: batches of an optimizer step.
        curriculum: beside settings of a pruner; a schedule has its own.
        image_size: N, image size of the data in pixels; needed with a curriculum.
        stride: sizes are multiples of it: what the model's patches or windows divide. (Stages that replay samples
            read them again.)
        seed: of the order and the pruning.
        group: a process group, or a mesh of one dimension such as `mesh["dp"]`; all processes if None. It is looked
            up when an epoch is planned, so the group may be initialised after this object is made.

    Raises:
        UserError: if the arguments do not fit together.
    """

    def __init__(
        self,
        num_samples: int,
        pruning: Pruning,
        *,
        batch_size: int,
        epochs: float | None = None,
        accumulate: int = 1,
        curriculum: CurriculumSettings | None = None,
        image_size: int | None = None,
        stride: int = 4,
        seed: int = 0,
        group: Group | None = None,
    ) -> None:
        for name, value in {"batch_size": batch_size, "accumulate": accumulate}.items():
            if value < 1:
                raise UserError(f"{name}: {value} is not allowed; expected at least 1")
        if isinstance(group, DeviceMesh) and group.ndim > 1:
            raise UserError(
                f"group: a mesh of {group.ndim} dimensions; expected one of them, such as mesh['dp']"
            )
        if isinstance(pruning, str | Path):
            pruning = load_schedule(pruning)
        if isinstance(pruning, Schedule) and curriculum is not None:
            raise UserError(
                "curriculum: the schedule has its own; expected schedule.pruning beside another one"
            )
        self.batch_size, self.accumulate, self.seed, self.group = batch_size, accumulate, seed, group
        if isinstance(pruning, Schedule):
            curriculum = pruning.curriculum
        self.curriculum: CurriculumSettings = curriculum or NoCurriculum()
        if image_size is None and not isinstance(self.curriculum, NoCurriculum):
            raise UserError(
                f"image_size: missing, and the curriculum is {self.curriculum.method}; expected the size of the "
                "images in pixels (or schedule.pruning in place of the schedule, to leave the curriculum out)"
            )
        self.pruner, self.budget = self._build(num_samples, pruning, epochs, image_size or stride, stride)
        self.loss_divisor = 1
        """What the loop divides a loss by before `backward`: some divide by the batches of a step."""
        self._epoch = 0
        self._position = 0  # batches of the epoch whose losses were given
        self._planned: tuple[tuple[int, int, int], list[Step]] | None = None

    def _build(
        self,
        num_samples: int,
        pruning: Pruner | PrunerSettings | Schedule,
        epochs: float | None,
        size: int,
        stride: int,
    ) -> tuple[Pruner, Budget]:
        """The pruner and the budget it was made for."""
        if isinstance(pruning, Pruner):
            return self._check_pruner(pruning, num_samples, epochs)
        if epochs is None:
            raise UserError("epochs: missing; expected the budget in passes over the data")
        if isinstance(pruning, Schedule):
            budget = pruning.budget(epochs, num_samples, size, stride=stride)
            return pruning.pruner(num_samples, budget, seed=self.seed), budget
        budget = loop_budget(pruning, self.curriculum.stages(size, stride=stride), epochs, num_samples)
        return loop_pruner(pruning, num_samples, budget, seed=self.seed), budget

    def _check_pruner(self, pruner: Pruner, num_samples: int, epochs: float | None) -> tuple[Pruner, Budget]:
        budget = Budget(len(pruner.epoch_ends), num_samples, [FULL])
        if pruner.num_samples != num_samples:
            problem = f"is for {pruner.num_samples} samples; expected {num_samples}, as the data set has"
        elif epochs not in (None, len(pruner.epoch_ends)):
            problem = f"is for {len(pruner.epoch_ends)} epochs; expected {epochs}"
        elif not isinstance(self.curriculum, NoCurriculum):
            problem = "knows no curriculum; expected its settings, or a schedule"
        elif any(
            abs(end - own) > TOLERANCE
            for end, own in zip(pruner.epoch_ends, budget.epoch_ends(), strict=True)
        ):
            problem = "has epochs of different lengths; expected its settings, or a schedule"
        else:
            return pruner, budget
        raise UserError(f"pruning: the pruner {problem}")

    # --- where the run stands ---------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Passes of the run, the last one perhaps cut short: `for epoch in range(loader.epoch, loader.epochs)`."""
        return len(self.budget.epoch_ends())

    @property
    def epoch(self) -> int:
        """The epoch to go on with: the one in progress, or the next one where that is over."""
        return self._epoch + (self._position >= len(self.batches))

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: share what the processes observed, the one collective of an epoch, and plan it.

        Every process has to call it. Of the epoch in progress it changes nothing, so a resumed loop may call it.

        Raises:
            UserError: if the run has no such epoch.
        """
        if epoch != self._epoch:
            if not 0 <= epoch < self.epochs:
                raise UserError(f"set_epoch: the run has no epoch {epoch}; expected 0 to {self.epochs - 1}")
            self.pruner.exchange()
            self._epoch, self._position, self._planned = epoch, 0, None

    def __len__(self) -> int:
        """Batches of the epoch on this process: the same on all, and a multiple of `accumulate`."""
        return len(self.batches)

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent when the next step begins; 1 at the end of the run."""
        batches = self.batches
        return batches[self._position].progress if self._position < len(batches) else self._epoch_end()

    @property
    def lr_scale(self) -> float:
        """What the learning rate is to be multiplied by for the next step: above 1 where its batch is larger."""
        stage = self.budget.stage_at(self.progress)
        return scaled_lr(stage.batch_factor, self.curriculum.lr_rule)

    def _epoch_end(self) -> float:
        return self.budget.epoch_ends()[self._epoch]

    @property
    def world(self) -> int:
        """Processes that share every step."""
        return rank_and_world(self.group)[1]

    @property
    def batches(self) -> Sequence[Step]:
        """The epoch's batches on this process, those shown already included. `number` is that of the optimizer
        step, `count` its samples on all processes."""
        rank, world = rank_and_world(self.group)
        key = (self._epoch, rank, world)
        if self._planned is None or self._planned[0] != key:
            self._planned = key, self._plan(rank, world)
        return self._planned[1]

    def _plan(self, rank: int, world: int) -> list[Step]:
        plan = self.pruner.plan(self._epoch)
        parts = world * self.accumulate
        if plan.kept < parts:
            raise UserError(
                f"accumulate: {self.accumulate} batches on {world} processes are too many for the {plan.kept} "
                f"samples of epoch {self._epoch}; expected a sample for each"
            )
        by_part = [
            epoch_steps(
                plan, self.budget, self._epoch, batch_size=self.batch_size * parts, rank=part, world=parts
            )
            for part in range(rank * self.accumulate, (rank + 1) * self.accumulate)
        ]
        return [batch for step in zip(*by_part, strict=True) for batch in step]

    def _remaining(self) -> Sequence[Step]:
        """The batches not shown yet.

        Raises:
            UserError: if the epoch is over.
        """
        if self._position >= len(self.batches):
            raise UserError(
                f"epoch {self._epoch} is over; expected set_epoch({self._epoch + 1}) before more batches"
            )
        return self.batches[self._position :]

    # --- a batch ----------------------------------------------------------------------------------------

    def _loss(self, number: int, weight: Tensor, losses: Tensor) -> Tensor:
        """() the loss of batch `number` to call `backward` on; its losses (b,) are noted for the next plan."""
        batch = self.batches[number]
        if losses.shape != batch.weight.shape:
            raise UserError(
                f"losses of shape {tuple(losses.shape)} for a batch of {len(batch.index)} samples; expected one "
                f'loss per sample, ({len(batch.index)},), as from a criterion with reduction="none"'
            )
        self.pruner.observe(batch.index, losses.detach())
        self._position = number + 1
        weighted = (losses * weight.to(losses.device, non_blocking=True)).sum()
        return weighted / batch.count * (self.world * self.loss_divisor)

    # --- checkpoints ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, to the last whole optimizer step, and the state of the pruner; the same on all
        processes, every one of which has to call it (it shares what they observed). It can be loaded on another
        number of processes at the same global batch."""
        self.pruner.exchange()
        return {
            "epoch": self._epoch,
            "next_step": self._position // self.accumulate,
            "step_size": self._step_size,
            "pruner": self.pruner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`.

        Raises:
            UserError: if it is of another run, or of steps of another size.
        """
        if state["step_size"] != self._step_size:
            raise UserError(
                f"batch_size: the checkpoint has steps of {state['step_size']} samples; expected as many, not "
                f"{self._step_size} ({self.batch_size} x {self.accumulate} batches x {self.world} processes)"
            )
        self.pruner.load_state_dict(state["pruner"])
        self._epoch, self._planned = state["epoch"], None
        self._position = state["next_step"] * self.accumulate

    @property
    def _step_size(self) -> int:
        return self.batch_size * self.accumulate * self.world


def rank_and_world(group: Group | None) -> tuple[int, int]:
    """Which of how many processes this is; (0, 1) without a process group."""
    if isinstance(group, DeviceMesh):
        return group.get_local_rank(), group.size()
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def as_images(inputs: Any) -> Tensor:
    """What a curriculum can reduce: float images (b, C, H, W).

    Raises:
        UserError: if the inputs are anything else.
    """
    if isinstance(inputs, Tensor) and inputs.dim() == 4 and torch.is_floating_point(inputs):
        return inputs
    found = (
        f"{inputs.dtype} of {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
    )
    raise UserError(f"curriculum: the inputs are {found}; expected float images (b, C, H, W)")
