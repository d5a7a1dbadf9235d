"""One run from the experiment to its figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import Splits, build_loader, open_data
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.measure import (
    Stopwatch,
    baseline_key,
    hardware,
    peak_memory,
    training_flops,
)
from raytrain_speedup.engine.reporter import Reporter
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.models import build_model
from raytrain_speedup.settings import UserError


def run(experiment: Experiment, reporter: Reporter, *, device: torch.device | None = None) -> dict[str, Any]:
    """Train, evaluate and measure; the test split is read once, at the end.

    Args:
        experiment: what to do.
        reporter: where figures and checkpoints go; the run resumes from its latest checkpoint.
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
        loop, passes = _assemble(experiment, splits, reporter, watch)
        with contextlib.closing(loop.loader):
            latest = reporter.latest()
            if latest is not None:
                loop.resume(latest)
            loop.fit()
            figures = _final_figures(loop, splits, passes)
            reporter.report(figures, _save_model(loop))
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
    threads = torch.get_num_threads()
    torch.manual_seed(experiment.train.seed)
    torch.set_num_threads(experiment.train.threads or threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _assemble(
    experiment: Experiment, splits: Splits, reporter: Reporter, watch: Stopwatch
) -> tuple[Loop, float]:
    """The loop of an experiment, and the sample passes its budget allows if nothing is pruned."""
    train = experiment.train
    device = watch.device
    num_samples = len(splits.train)
    stages = experiment.curriculum.stages(splits.image_size)
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
        model = build_model(
            experiment.model,
            num_classes=splits.num_classes,
            in_channels=splits.channels,
            image_size=splits.image_size,
        )
        shapes = {stage.size: (splits.channels, *[stage.size or splits.image_size] * 2) for stage in stages}
        flops = {size: training_flops(model, shape) for size, shape in shapes.items()}
        model = model.to(
            device, memory_format=torch.channels_last if train.channels_last else torch.preserve_format
        )  # type: ignore[call-overload]
        loader = build_loader(
            splits,
            experiment.data,
            device=device,
            seed=train.seed,
            rank=reporter.rank,
            world=reporter.world,
            channels_last=train.channels_last,
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
        loop.warm_up(list(shapes.values()))
    return loop, budget.num_epochs * num_samples / factor


def _final_figures(loop: Loop, splits: Splits, passes: float) -> dict[str, Any]:
    experiment, reporter = loop.experiment, loop.reporter
    test, val = loop.evaluate("test"), loop.last_val or loop.evaluate("val")
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


def _save_model(loop: Loop) -> Path | None:
    """The evaluated weights alone, as `model.pt`, in a last checkpoint."""
    if not loop.train.checkpoint_every:
        return None
    folder = loop.save()
    if loop.reporter.rank == 0:
        model: nn.Module = loop.ema.module if loop.ema is not None else loop.model
        torch.save(model.state_dict(), folder / "model.pt")
    return folder
