"""The teacher of a distillation: read from a file, or trained first on the data set."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import Loader, Splits
from raytrain_speedup.engine.checkpoint import read_shared
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.measure import Stopwatch, training_flops
from raytrain_speedup.engine.reporter import Figures, Reporter
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning import FullData
from raytrain_speedup.models import build_model
from raytrain_speedup.settings import UserError


def prepare_teacher(
    experiment: Experiment, splits: Splits, loader: Loader, reporter: Reporter, device: torch.device
) -> nn.Module:
    """The teacher with its knowledge, on the device.

    A teacher that has to be trained is trained by all workers together; a checkpoint of the distillation
    holds it, so that it is trained once. Its own training is not checkpointed.
    """
    settings = experiment.teacher
    if settings is None:
        raise UserError("teacher: missing; distillation needs one")
    model = build_model(
        settings.model,
        num_classes=splits.num_classes,
        in_channels=splits.channels,
        image_size=splits.image_size,
    ).to(device)
    if settings.train is None:
        return model
    latest = reporter.latest()
    if latest is not None:
        model.load_state_dict(read_shared(latest, device)["companions"]["teacher"])
        return model
    apprenticeship = experiment.model_copy(
        update={
            "model": settings.model,
            "train": settings.train.model_copy(update={"checkpoint_every": 0, "checkpoint_steps": None}),
            "teacher": None,
            "distillation": None,
        }
    )
    budget = Budget(settings.train.epochs, len(splits.train), [FULL])
    loop = Loop(
        apprenticeship,
        model=model,
        task=experiment.task.build(),
        loader=loader,
        pruner=FullData(len(splits.train), budget.epoch_ends(), seed=settings.train.seed),
        budget=budget,
        flops={None: training_flops(model, (splits.channels, splits.image_size, splits.image_size))},
        reporter=_Apprentice(reporter),
        watch=Stopwatch(device),
    )
    loop.fit()
    return loop.averaged or loop.model


class _Apprentice(Reporter):
    """Passes on how the teacher's training goes, and keeps its figures apart from the student's."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.rank, self.world = reporter.rank, reporter.world

    def report(self, figures: Figures, checkpoint: Path | None = None) -> None:
        """The teacher's epochs are no epochs of the run."""

    def progress(self, figures: Figures) -> None:
        self._reporter.progress({**figures, "of": "teacher"})

    def latest(self) -> Path | None:
        return None

    def new_folder(self) -> Path:
        raise AssertionError("a teacher's training is not checkpointed")
