"""The teacher of a distillation: read from a file, fetched by name, or trained first on the data set."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raytrain_speedup.config import Experiment, TeacherSettings
from raytrain_speedup.data import Splits, build_loader
from raytrain_speedup.engine.alarm import NonFinite
from raytrain_speedup.engine.checkpoints.checkpoint import (
    Checkpoint,
    random_state,
    read_shared,
    restore_random_state,
)
from raytrain_speedup.engine.cost.measure import Stopwatch, training_flops
from raytrain_speedup.engine.identity import check_same, identity
from raytrain_speedup.engine.loop import Loop, Stopped
from raytrain_speedup.engine.reporter import KeepsNothing, Metrics, Reporter
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.distillation.workers import share_buffers
from raytrain_speedup.methods.pruning import FullData
from raytrain_speedup.models import ModelSettings, build_model, published_classes, without_weights
from raytrain_speedup.models.pretrained import load_whole
from raytrain_speedup.settings import UserError


def prepare_teacher(
    experiment: Experiment,
    splits: Splits,
    reporter: Reporter,
    device: torch.device,
    *,
    latest: Path | None,
    refuse: Callable[[nn.Module], object],
) -> nn.Module:
    """The teacher with its knowledge, on the device.

    A teacher that has to be trained is trained by all workers together, with its own seed: it depends on the
    data and on the section `teacher` alone. A checkpoint of the distillation holds it, wherever it came from,
    so that it is trained once and its file may go; the first is taken before the first call. Its own training
    is not checkpointed.

    Args:
        latest: the checkpoint that the run goes on from.
        refuse: raises for a network that cannot teach here; tried on a copy of one that is to be trained first.

    Raises:
        UserError: if it is no network for these classes and images, or its file is not of this network.
        NonFinite: if its training fails.
        Stopped: if the user asks for it meanwhile.
    """
    settings = experiment.teacher
    assert settings is not None, "an experiment with a section `distillation` has a teacher"
    with _own_draws(settings):
        if latest is not None:
            return _restore(latest, experiment, splits, device)
        with _naming("teacher."):
            network = _build(settings.model, splits).to(device)
        if settings.train is not None:
            refuse(copy.deepcopy(network))
            network = _train(network, experiment, splits, reporter)
    return network


def _restore(latest: Path, experiment: Experiment, splits: Splits, device: torch.device) -> nn.Module:
    """The teacher that a checkpoint holds."""
    assert experiment.teacher is not None
    shared = read_shared(latest, device)
    check_same(shared["identity"], identity(experiment, splits.fingerprint), f"{latest} is a checkpoint")
    network = _build(without_weights(experiment.teacher.model), splits).to(device)
    network.load_state_dict(shared["frozen_models"]["teacher"])
    return network


def _build(model: ModelSettings, splits: Splits) -> nn.Module:
    """The network as its file or its published weights have it, every layer of them, or as it is drawn.

    A student may start from a network for other classes, and its classifier afresh. A teacher may not.
    """
    shapes: dict[str, Any] = {
        "num_classes": splits.num_classes,
        "in_channels": splits.channels,
        "dense": splits.dense,
    }
    if model.weights is not None:
        known = published_classes(model)
        if known != splits.num_classes:
            raise UserError(
                f"model.weights: {model.weights} of {model.name} knows {known} classes; expected "
                f"{splits.num_classes}, as the data have"
            )
    if model.pretrained is None:
        return build_model(model, image_size=splits.image_size, **shapes)
    network = build_model(without_weights(model), image_size=splits.image_size, **shapes)
    with _naming("model.pretrained: "):
        return load_whole(network, model.pretrained)


def _train(network: nn.Module, experiment: Experiment, splits: Splits, reporter: Reporter) -> nn.Module:
    """Train it on the data set, with nothing but `teacher.train`."""
    settings = experiment.teacher
    assert settings is not None and settings.train is not None
    none = {"checkpoint_every": 0, "checkpoint_steps": None, "checkpoint_minutes": None}
    how = settings.train.model_copy(update=none)
    device = next(network.parameters()).device
    loader = build_loader(
        splits,
        experiment.data,
        device=device,
        seed=how.seed,
        rank=reporter.rank,
        world=reporter.world,
        channels_last=how.channels_last,
    )
    if how.channels_last:
        network = network.to(memory_format=torch.channels_last)
    budget, task = Budget(how.epochs, len(splits.train), [FULL]), experiment.task.build()
    loop = Loop(
        experiment.model_copy(
            update={"model": settings.model, "train": how, "teacher": None, "distillation": None}
        ),
        model=network,
        task=task,
        loader=loader,
        pruner=FullData(len(splits.train), budget.epoch_ends(), seed=how.seed),
        budget=budget,
        flops={(None, 1.0): training_flops(network, task, splits.input_shape())},
        reporter=_Apprenticeship(reporter),
        watch=Stopwatch(device),
        timed=False,
    )
    with contextlib.closing(loader):
        try:
            loop.fit()
        except NonFinite as error:
            raise NonFinite(f"teacher: {error}") from error
    taught = loop.learner.result
    share_buffers(taught)
    return taught


class _Apprenticeship(KeepsNothing):
    """Passes on how the teacher's training goes, and keeps its metrics apart from the student's."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.rank, self.world = reporter.rank, reporter.world

    def report(self, metrics: Metrics, checkpoint: Checkpoint | None = None) -> None:
        """The teacher's epochs are no epochs of the run."""

    def phase(self, name: str) -> None:
        self._reporter.phase(f"teacher: {name}")

    def progress(self, metrics: Metrics) -> None:
        self._reporter.progress({**metrics, "of": "teacher"})

    def should_stop(self) -> bool:
        """Ends at once: there is nothing to save."""
        if self._reporter.should_stop():
            raise Stopped("stopped while the teacher was trained, of which nothing is kept")
        return False


@contextlib.contextmanager
def _own_draws(settings: TeacherSettings) -> Iterator[None]:
    """Seeded for the teacher, and what was drawn before goes on afterwards."""
    random = random_state()
    torch.manual_seed(settings.train.seed if settings.train is not None else 0)
    try:
        yield
    finally:
        restore_random_state(random)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say whose mistake it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}{error}") from error
