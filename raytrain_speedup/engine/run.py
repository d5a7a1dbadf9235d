"""One run from the experiment to its figures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import Splits, build_loader, open_data
from raytrain_speedup.engine.checkpoint import random_state, restore_random_state, save_json, save_tensors
from raytrain_speedup.engine.identity import differences, identity
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.measure import (
    Stopwatch,
    baseline_key,
    hardware,
    peak_memory,
    training_flops,
)
from raytrain_speedup.engine.reporter import Reporter
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.models import build_model, check_sizes, stride_of
from raytrain_speedup.settings import UserError

FIGURES = "figures.json"
"""In the last checkpoint of a complete run."""


def run(experiment: Experiment, reporter: Reporter, *, device: torch.device | None = None) -> dict[str, Any]:
    """Train, evaluate and measure; the test split is read once, at the end.

    Args:
        experiment: what to do.
        reporter: where figures and checkpoints go; the run resumes from its latest checkpoint, and one that
            is complete only tells its figures again.
        device: where to train, instead of what `train.device` says.

    Returns:
        The final figures, which were also the last report. Seconds are synchronised, memory is in bytes,
        the test metric has the task's name (`accuracy`), `val_` is in front of the validation figures.

    Raises:
        UserError: for everything a user can mend.
    """
    train = experiment.train
    device = device or pick_device(train.device)
    watch = Stopwatch(device)
    with _numerics(experiment), watch.phase("setup"):
        splits = open_data(experiment.data, seed=train.seed)
        _check_sizes(splits, reporter.world)
        latest = reporter.latest()
        if latest is not None and (latest / FIGURES).is_file():
            figures = _read_figures(latest, identity(experiment, splits.fingerprint))
            reporter.report(figures)
            return figures
        loop, passes = _assemble(experiment, splits, reporter, watch)
        with contextlib.closing(loop.loader):
            if latest is not None:
                loop.resume(latest)
            loop.fit()
            figures = _final_figures(loop, splits, passes)
            with loop.naming_last_checkpoint():
                reporter.report(figures, _save_result(loop, figures))
    return figures


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device: 'cuda' is not available here; expected 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _numerics(experiment: Experiment) -> Iterator[None]:
    """Threads and seeds of the process, put back afterwards: a Tune trial shares its process with others."""
    threads, random = torch.get_num_threads(), random_state()
    torch.manual_seed(experiment.train.seed)
    torch.set_num_threads(experiment.train.threads or threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        restore_random_state(random)


def _assemble(
    experiment: Experiment, splits: Splits, reporter: Reporter, watch: Stopwatch
) -> tuple[Loop, float]:
    """The loop of an experiment, and the sample passes its budget allows if nothing is pruned."""
    train = experiment.train
    device, num_samples = watch.device, len(splits.train)
    shape = {
        "num_classes": splits.num_classes,
        "in_channels": splits.channels,
        "image_size": splits.image_size,
    }
    with watch.phase("warmup"):
        model = build_model(experiment.model, **shape)
    stages = curriculum_stages(experiment, model, splits)
    factor = experiment.pruning.budget_factor()
    budget = Budget(train.epochs * factor, num_samples, stages)
    pruner = experiment.pruning.build(
        num_samples,
        budget.epoch_ends(),
        last_epoch_share=budget.last_epoch_share,
        seed=train.seed,
        device=device,
    )
    with watch.phase("warmup"):
        by_size = {stage.size: stage for stage in stages}
        flops = {size: training_flops(model, input_shape(splits, size)) for size in by_size}
        memory_format = torch.channels_last if train.channels_last else torch.preserve_format
        model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        loader = build_loader(
            splits,
            experiment.data,
            device=device,
            seed=train.seed,
            rank=reporter.rank,
            world=reporter.world,
            channels_last=train.channels_last,
            kernel=experiment.curriculum.kernel,
        )
        loop = Loop(
            experiment,
            model=model,
            task=experiment.task.build(),
            loader=loader,
            pruner=pruner,
            budget=budget,
            flops=flops,
            reporter=reporter,
            watch=watch,
        )
        loop.warm_up(list(by_size.values()))
    return loop, budget.num_epochs * num_samples / factor


def curriculum_stages(experiment: Experiment, model: nn.Module, splits: Splits) -> Sequence[Stage]:
    """The stages of an experiment's curriculum on its model and data.

    Raises:
        UserError: if the stages cannot be laid out, or the model does not take one of their sizes.
    """
    measured = experiment.curriculum.cost == "flops"
    stages = experiment.curriculum.stages(
        splits.image_size,
        stride=stride_of(experiment.model, image_size=splits.image_size),
        model=experiment.model.name.rpartition("/")[2],
        cost_of=(lambda size: training_flops(model, input_shape(splits, size))) if measured else None,
    )
    sizes = {stage.size for stage in stages} - {None, splits.image_size}
    check_sizes(
        experiment.model,
        sorted(size for size in sizes if size is not None),
        num_classes=splits.num_classes,
        in_channels=splits.channels,
        image_size=splits.image_size,
    )
    return stages


def input_shape(splits: Splits, size: int | None) -> tuple[int, int, int]:
    """(C, H, W) of an input of side `size`, or of full ones."""
    return splits.channels, size or splits.image_size, size or splits.image_size


def _final_figures(loop: Loop, splits: Splits, passes: float) -> dict[str, Any]:
    experiment, reporter = loop.experiment, loop.reporter
    test, val = loop.evaluate("test"), loop.last_val
    if not val and loop.has_val:  # resumed after the last epoch
        val = loop.evaluate("val")
    identity = experiment.to_dict()
    identity["train"] = {
        key: value for key, value in identity["train"].items() if key not in ("seed", "epochs")
    }
    compared = {key: identity[key] for key in ("task", "data", "model", "train")}
    costs = loop.costs()
    return {
        "done": True,
        "epoch": loop.epoch,
        "progress": 1.0,
        **{"test_loss" if name == "loss" else name: value for name, value in test.items()},
        **{f"val_{name}": value for name, value in val.items()},
        **costs,
        "wall_seconds": sum(loop.watch.state_dict().values()),
        "passes_saved": 1 - loop.samples_shown / passes,
        "peak_memory_bytes": peak_memory(loop.device),
        "samples_skipped": sum(skipped.count for skipped in loop.loader.skipped.values()),
        "seed": experiment.train.seed,
        "baseline_key": baseline_key({**compared, "samples": splits.fingerprint, "workers": reporter.world}),
        "hardware": hardware(loop.device, world=reporter.world, precision=experiment.train.precision),
    }


def _save_result(loop: Loop, figures: dict[str, Any]) -> Path | None:
    """A last checkpoint, with the evaluated weights alone (`model.pt`) and the figures."""
    if not loop.train.checkpoint_every:
        return None
    folder = loop.save()
    if loop.reporter.rank == 0:
        save_tensors((loop.averaged or loop.model).state_dict(), folder / "model.pt")
        save_json({"identity": loop.identity, "figures": figures}, folder / FIGURES)
    return folder


def _read_figures(folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The figures of a complete run."""
    content = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    other = differences(content["identity"], expected)
    if other:
        raise UserError(f"{folder} is a finished run of another experiment: {'; '.join(other)}")
    return content["figures"]


def _check_sizes(splits: Splits, world: int) -> None:
    """Every worker needs a sample of every split; only a validation split may be empty."""
    for name in ("train", "val", "test"):
        size = len(getattr(splits, name))
        if size < world and (size or name != "val"):
            raise UserError(
                f"data.{name}: {size} samples are too few for {world} workers; expected {world} at least"
            )
