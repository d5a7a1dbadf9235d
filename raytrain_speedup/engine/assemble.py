"""From an experiment to the loop that runs it: with data, or with a teacher and none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import Loader, Splits, TokenLoader, build_loader, check_readable
from raytrain_speedup.engine.checkpoints.checkpoint import read_epoch
from raytrain_speedup.engine.cost.measure import Stopwatch, asked, forward_flops, training_flops
from raytrain_speedup.engine.evaluate import sample_features
from raytrain_speedup.engine.learner import DTYPES
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.pool_loader import PoolLoader
from raytrain_speedup.engine.reporter import Reporter
from raytrain_speedup.engine.teacher import prepare_teacher
from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.methods.curriculum.base import FULL, Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.distillation import Synthesizer
from raytrain_speedup.methods.distillation.base import RealImages
from raytrain_speedup.methods.plain_loop import loop_pruner
from raytrain_speedup.methods.pruning import FullData
from raytrain_speedup.methods.pruning.window import WindowedPruner
from raytrain_speedup.models import build_model, check_sizes, stride_of, without_weights
from raytrain_speedup.models.tokens import can_drop_tokens, keep_tokens
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import TASKS, Losses, SupervisedTask, Task
from raytrain_speedup.tasks.distillation import Distillation
from raytrain_speedup.user_code import is_import_path, what_happened

INIT_IMAGES = 1024
"""Training images, without augmentation, that a network may begin from (`init_from_images`)."""


def assemble(
    experiment: Experiment,
    splits: Splits,
    reporter: Reporter,
    watch: Stopwatch,
    *,
    latest: Path | None = None,
) -> tuple[Loop, float]:
    """The loop of an experiment, warmed up, and the sample passes its budget allows if nothing is pruned.

    Args:
        latest: the checkpoint that the run will go on from. It has all weights, so files of weights that the
            run began with may be gone.

    Raises:
        UserError: for whatever does not fit together, or cannot be read.
    """
    _check_task(experiment, splits)
    _check_sizes(splits, reporter.world)
    build = _with_data if experiment.distillation is None else _without_data
    with watch.phase("warmup"):
        reporter.phase("looking at the data")
        check_readable(splits, experiment.data)
        reporter.phase("building the network")
        loop, passes = build(experiment, splits, reporter, watch, latest)
        loop.warm_up(_distinct(_stages_ahead(loop.budget, latest)))
    return loop, passes


def _with_data(
    experiment: Experiment, splits: Splits, reporter: Reporter, watch: Stopwatch, latest: Path | None
) -> tuple[Loop, float]:
    train = experiment.train
    num_samples, task = len(splits.train), experiment.task.build()
    model = _student(experiment, splits, latest)
    task.prepare(model)
    if task.logits is None or is_import_path(experiment.task.kind):
        _check_step(experiment, model, task, splits.input_shape())
    stages = curriculum_stages(experiment, model, splits)
    factor = experiment.pruning.budget_factor()
    budget = Budget(train.epochs * factor, num_samples, stages)
    pruner = loop_pruner(experiment.pruning, num_samples, budget, seed=train.seed, device=watch.device)
    if window := splits.train.window():
        pruner = WindowedPruner(pruner, window.stretch, window.samples)
    flops = _flops_of(experiment, stages, model, task, splits)
    loader = _loader(experiment, splits, reporter, watch.device)
    if latest is None and experiment.model.pretrained is None and isinstance(loader, Loader):
        _init_from_images(model, loader)
    model = _placed(model, experiment, watch.device)
    if experiment.pruning.described and latest is None:  # a checkpoint knows what was chosen
        reporter.phase("describing the samples")
        with watch.phase("train"):
            pruner.describe(sample_features(model, task, loader, train.batch_size))
    loop = Loop(
        experiment,
        model=model,
        task=task,
        loader=loader,
        pruner=pruner,
        budget=budget,
        flops=flops,
        reporter=reporter,
        watch=watch,
    )
    return loop, sum(budget.samples_shown()) / factor


def _without_data(
    experiment: Experiment, splits: Splits, reporter: Reporter, watch: Stopwatch, latest: Path | None
) -> tuple[Loop, float]:
    """An epoch is one call of the synthesizer and the student's steps after it."""
    train, settings, device = experiment.train, experiment.distillation, watch.device
    assert settings is not None
    model = _placed(_student(experiment, splits, latest), experiment, device)
    data = _real_loader(experiment, splits, reporter, device)

    def synthesizer_for(teacher: nn.Module) -> Synthesizer:
        return settings.build(
            teacher,
            model,
            num_classes=splits.num_classes,
            image_size=splits.image_size,
            channels=splits.channels,
            seed=train.seed,
            device=device,
            normalise=(experiment.data.mean, experiment.data.std),
            real=RealImages(len(splits.train), data.train_images),
        )

    with watch.phase("teacher"):
        reporter.phase("preparing the teacher")
        teacher = prepare_teacher(experiment, splits, reporter, device, latest=latest, refuse=synthesizer_for)
    teacher = _placed(teacher, experiment, device)
    loader = PoolLoader(
        data,
        synthesizer=synthesizer_for(teacher),
        teacher=teacher,
        student=model,
        settings=settings,
        dtype=DTYPES[train.precision],
        watch=watch,
    )
    num_samples = settings.student_steps * train.batch_size
    budget = Budget(train.epochs, num_samples, [FULL])
    shape = splits.input_shape()
    taught = experiment.task.build()
    assert isinstance(taught, SupervisedTask), "checked before"
    task = Distillation(taught, settings.temperature, splits.num_classes)
    loop = Loop(
        experiment,
        model=model,
        task=task,
        loader=loader,
        pruner=FullData(num_samples, budget.epoch_ends(), seed=train.seed),
        budget=budget,
        flops={(None, 1.0): training_flops(model, task, shape) + forward_flops(teacher, task, shape)},
        reporter=reporter,
        watch=watch,
        frozen_models={"teacher": teacher},
    )
    return loop, budget.num_epochs * num_samples


def curriculum_stages(experiment: Experiment, model: nn.Module, splits: Splits) -> Sequence[Stage]:
    """The stages of an experiment's curriculum on its model and data.

    Raises:
        UserError: if the stages cannot be laid out, or the model does not take one of their sizes.
    """
    if splits.inputs not in experiment.curriculum.inputs:
        fitting = [name for name, settings in CURRICULA.items() if splits.inputs in settings.inputs]
        shown = " or ".join(sorted(experiment.curriculum.inputs))
        raise UserError(
            f"curriculum.method: {experiment.curriculum.method!r} shows a part of {shown}, and "
            f"data.source {experiment.data.source!r} has {splits.inputs}; expected {' or '.join(fitting)}"
        )
    measured, task = experiment.curriculum.cost == "flops", experiment.task.build()
    stages = experiment.curriculum.stages(
        splits.image_size,
        stride=stride_of(
            experiment.model,
            image_size=splits.image_size,
            num_classes=splits.num_classes,
            in_channels=splits.channels,
        ),
        model=experiment.model.name.rpartition("/")[2],
        cost_of=(lambda size: _counted(experiment, model, task, splits, size)) if measured else None,
    )
    if not can_drop_tokens(model) and any(stage.tokens < 1 for stage in stages):
        raise UserError(
            f"curriculum.method: {experiment.curriculum.method} drops tokens, and {experiment.model.name} has no "
            "place for that; expected a vision transformer of timm (timm/vit_..., timm/deit_...)"
        )
    sizes = {stage.size for stage in stages} - {None, splits.image_size}
    check_sizes(
        experiment.model,
        sorted(size for size in sizes if size is not None),
        num_classes=splits.num_classes,
        in_channels=splits.channels,
        image_size=splits.image_size,
        dense=_dense(task),
    )
    return stages


def _student(experiment: Experiment, splits: Splits, latest: Path | None) -> nn.Module:
    return build_model(
        experiment.model if latest is None else without_weights(experiment.model),
        num_classes=splits.num_classes,
        in_channels=splits.channels,
        image_size=splits.image_size,
        dense=_dense(experiment.task.build()),
    )


def _init_from_images(model: nn.Module, loader: Loader) -> None:
    """Where a network's weights begin with what the data look like, show it some; the same ones on every rank."""
    init = getattr(model, "init_from_images", None)
    if init is not None:
        size = len(loader.splits.train)
        count = min(size, INIT_IMAGES)
        images = loader.train_images(torch.arange(count) * size // count)
        init(loader.appearance.plain(images.permute(0, 2, 3, 1)))


def _dense(task: Task) -> bool | None:
    """Whether a network gives logits for every pixel, or for an image; None where it gives neither."""
    return None if task.logits is None else task.logits == "pixel"


def _check_step(experiment: Experiment, model: nn.Module, task: Task, shape: tuple[int, ...]) -> None:
    """Where task or network are not made for each other by this package, a step is tried on shapes alone: the task
    finds what it wants of the network, and gives what the engine relies on.

    Raises:
        UserError: naming what does not fit, and the reason.
    """
    where = f"task.kind: {experiment.task.kind}"
    try:
        found = asked(model, task, shape)
        if isinstance(found, Losses):
            found.losses.sum().backward()
    except UserError:
        raise  # it names its key itself
    except Exception as error:
        raise UserError(
            f"{where} and model.name {experiment.model.name!r} make no step: {what_happened(error)}"
        ) from error
    if not isinstance(found, Losses):
        kind = type(found).__name__
        raise UserError(f"{where}: its losses are a {kind}; expected Losses, one loss and score per sample")
    for name, values in (("losses", found.losses), ("scores", found.scores)):
        if tuple(values.shape) != (2,):
            shown = f"of shape {tuple(values.shape)} for 2 samples"
            raise UserError(f"{where}: its {name} are {shown}; expected one for each (reduction='none')")
    if task.draws != ("draws" in task.example(shape, 2)):
        raise UserError(
            f"{where}: draws is {task.draws}; expected True where its example has the row 'draws'"
        )


def _placed(model: nn.Module, experiment: Experiment, device: torch.device) -> nn.Module:
    memory_format = torch.channels_last if experiment.train.channels_last else torch.preserve_format
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]


def _loader(
    experiment: Experiment, splits: Splits, reporter: Reporter, device: torch.device
) -> Loader | TokenLoader:
    if splits.inputs == "sequences":
        return TokenLoader(splits, device=device, rank=reporter.rank, world=reporter.world)
    return _real_loader(experiment, splits, reporter, device)


def _real_loader(experiment: Experiment, splits: Splits, reporter: Reporter, device: torch.device) -> Loader:
    return build_loader(
        splits,
        experiment.data,
        device=device,
        seed=experiment.train.seed,
        rank=reporter.rank,
        world=reporter.world,
        channels_last=experiment.train.channels_last,
        kernel=experiment.curriculum.kernel,
    )


def _distinct(stages: Sequence[Stage]) -> list[Stage]:
    """One stage of each input shape, the last and hardest."""
    return list({(stage.size, stage.batch_factor, stage.tokens): stage for stage in stages}.values())


def _stages_ahead(budget: Budget, latest: Path | None) -> Sequence[Stage]:
    """What the run will still meet: one that goes on from a checkpoint does not compile what lies behind it."""
    begun = 0.0 if latest is None else budget.progress(read_epoch(latest), 0.0)
    return [stage for stage in budget.stages if stage.ends_at > begun] or budget.stages[-1:]


def _flops_of(
    experiment: Experiment, stages: Sequence[Stage], model: nn.Module, task: Task, splits: Splits
) -> dict[tuple[int | None, float], float]:
    """Of one sample, by the size and the fraction of the tokens that a stage shows."""
    flops = {}
    for stage in _distinct(stages):
        keep_tokens(model, stage.tokens)
        flops[stage.size, stage.tokens] = _counted(experiment, model, task, splits, stage.size, stage.tokens)
    keep_tokens(model, 1.0)
    return flops


_COUNTED: dict[tuple[Any, ...], float] = {}


def _counted(
    experiment: Experiment,
    model: nn.Module,
    task: Task,
    splits: Splits,
    size: int | None,
    tokens: float = 1.0,
) -> float:
    """FLOPs of training on one sample; a process that makes many runs counts a network once.

    Not so a network or task of the user's own, nor one from a file or folder, which may hold its configuration:
    what is under the name may have changed.
    """
    shape, named = splits.input_shape(size), (experiment.model.name, experiment.task.kind)
    if any(map(is_import_path, named)) or experiment.model.pretrained is not None:
        return training_flops(model, task, shape)
    settings = experiment.model.model_dump_json(), experiment.task.model_dump_json()
    key = (*settings, splits.image_size, splits.num_classes, shape, tokens)
    if key not in _COUNTED:
        _COUNTED[key] = training_flops(model, task, shape)
    return _COUNTED[key]


def _check_task(experiment: Experiment, splits: Splits) -> None:
    """The data have what the task asks about; and what a student learns of its teacher can be right or wrong."""
    task = experiment.task.build()
    if task.inputs != splits.inputs or task.targets not in (None, splits.targets):
        fitting = [
            kind for kind, settings in TASKS.items() if settings(kind=kind).build().targets == splits.targets
        ]
        wanted = task.inputs if task.targets is None else f"{task.inputs} with {task.targets}"
        raise UserError(
            f"task.kind: {experiment.task.kind!r} needs {wanted}, and data.source {experiment.data.source!r} has "
            f"{splits.targets}; expected {' or '.join(map(repr, fitting))}, or other data"
        )
    if experiment.pruning.described and not task.described:
        having = [kind for kind, settings in TASKS.items() if settings(kind=kind).build().described]
        raise UserError(
            f"pruning.method: {experiment.pruning.method!r} chooses by features of samples, and task.kind "
            f"{experiment.task.kind!r} has none; expected task.kind {' or '.join(having)}, or another method"
        )
    if experiment.distillation is not None and not isinstance(task, SupervisedTask):
        raise UserError(
            f"distillation: a teacher of the task {experiment.task.kind!r} has no answers that a student could "
            "learn; expected classification or segmentation"
        )


def _check_sizes(splits: Splits, world: int) -> None:
    """Every worker needs a sample of every split; only a validation split may be empty."""
    for name in ("train", "val", "test"):
        size = len(getattr(splits, name))
        if size < world and (size or name != "val"):
            raise UserError(
                f"data.{name}: {size} samples are too few for {world} workers; expected {world} at least"
            )
