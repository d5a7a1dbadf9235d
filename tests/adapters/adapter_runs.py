"""Runs of a second or less that the adapters' tests share: 230 digits, by the engine and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from raytrain_speedup.adapters import ProgressLR, PrunedLoader
from raytrain_speedup.adapters.epochs import PrunedEpochs
from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.curriculum.crop import crop_batch
from raytrain_speedup.methods.pruning import InfoBatch, Pruner
from raytrain_speedup.models import build_model
from raytrain_speedup.schedule import Schedule, TunedOn, save_schedule

N, EPOCHS, BATCH = 230, 6, 64
PRUNING = {"method": "infobatch", "prune_ratio": 0.6, "anneal_from": 0.7}  # epochs 1, 2 and 3 are pruned
RATES = {"schedule": "one-cycle", "warmup": 0.3}
LR, MOMENTUM = 0.05, 0.9

VIT = {  # no batch norm, so its numbers do not depend on how a batch is cut
    "model.name": "timm/vit_tiny_patch16_224",
    "model.options": {"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2},
}
STEADY = VIT | {"pruning.method": "random"}
"""Plans that no loss has a say in: epochs of 92 samples. Where InfoBatch leaves 7 of them, an accumulation of 4 has
one step fewer than the engine."""

STAGES = [
    {"fraction": 0.3, "ratio": 0.5, "batch_factor": 2},
    {"fraction": 0.2, "ratio": 0.75},
    {"fraction": 0.5},
]
CURRICULUM = {"method": "custom", "schedule": STAGES, "lr_rule": "linear"}
STAGED = {
    "data.image_size": 16,
    "pruning.method": "random",
    **{f"curriculum.{key}": value for key, value in CURRICULUM.items()},
}
"""Sizes, larger batches and their learning rate, more passes than the budget has epochs. Images are not the same to
the last bit, so samples are dropped at random: the least change of a loss moves InfoBatch's mean."""

ALIKE = {"rtol": 1e-3, "atol": 1e-5}
"""How near weights are that were summed in another order."""

Overrides = Mapping[str, Any]
EngineRun = tuple[list[Tensor], dict[str, Tensor]]
"""What a run of the engine shows, step by step, and the weights it ends with."""
EngineOf = Callable[..., EngineRun]


def tiny(overrides: Overrides | None = None) -> Experiment:
    """Six epochs of 230 digits of 8 x 8 pixels as they are, on a ResNet-8, three of them pruned."""
    keys = {
        "data.image_size": 8,
        "data.val_fraction": 0.84,
        "data.augment": "none",
        "train.epochs": EPOCHS,
        "train.batch_size": BATCH,
        "train.eval_every": 0,
        "train.threads": 1,
        "train.channels_last": False,
        "train.lr": LR,
        "train.momentum": MOMENTUM,
        "train.weight_decay": 0.0,
        "train.seed": 3,
        **{f"train.{key}": value for key, value in RATES.items()},
        **{f"pruning.{key}": value for key, value in PRUNING.items()},
    }
    return load_experiment("digits", keys | dict(overrides or {}))


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """The positions of every call of a pruner's `observe`: what any loop shows, batch by batch."""
    shown: list[Tensor] = []

    def noting(observe: Any) -> Any:
        def note(self: Pruner, index: Tensor, loss: Tensor) -> None:
            shown.append(index.cpu().clone())
            observe(self, index, loss)

        return note

    with pytest.MonkeyPatch.context() as patch:
        for kind in (InfoBatch, Pruner):
            patch.setattr(kind, "observe", noting(kind.observe))
        yield shown


def engine_run(experiment: Experiment, folder: Path) -> EngineRun:
    """Train by the engine."""
    reporter = LocalReporter(folder, lambda kind, metrics: None)
    with recorded() as shown:
        run(experiment, reporter, device=torch.device("cpu"))
    latest = reporter.latest()
    assert latest is not None
    return shown, torch.load(latest / "model.pt", weights_only=True)


def digits(experiment: Experiment) -> TensorDataset:
    """The training images of an experiment as the network sees them, (N, 1, H, H), and their classes."""
    splits = open_data(experiment.data, seed=experiment.train.seed)
    images = torch.from_numpy(np.stack([splits.train.decode(i) for i in range(len(splits.train))]))
    data = experiment.data
    inputs = crop_batch(images.permute(0, 3, 1, 2), data.image_size, mean=data.mean, std=data.std)
    return TensorDataset(inputs.contiguous(), torch.from_numpy(splits.train.targets))


def network(experiment: Experiment) -> nn.Module:
    """The network of an experiment with its first weights."""
    torch.manual_seed(experiment.train.seed)
    model = build_model(
        experiment.model, num_classes=10, in_channels=1, image_size=experiment.data.image_size
    )
    model.register_forward_pre_hook(lambda _, inputs: as_decoded(inputs[0]))
    return model.train()


def as_decoded(x: Tensor) -> Tensor:
    """The same images with the strides of the engine's, which were (H, W, 1) once: torch's convolutions look at
    them, and sum in another order."""
    return x.contiguous().as_strided(x.shape, (x[0].numel(), 1, x.shape[-1], 1))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def settings(experiment: Experiment) -> dict[str, Any]:
    """What a loader is told of an experiment."""
    return {
        "pruning": experiment.pruning,
        "epochs": experiment.train.epochs,
        "seed": experiment.train.seed,
    }


def loader_of(experiment: Experiment, **options: Any) -> PrunedLoader:
    """A loader of an experiment's images that is told of its pruning."""
    return PrunedLoader(digits(experiment), **settings(experiment), **{"batch_size": BATCH} | options)


def staged_schedule(folder: Path) -> Path:
    """The exported schedule of `STAGED`."""
    dropped = PRUNING | {"method": "random"}
    return schedule_file(folder / "schedule.yaml", pruning=dropped, curriculum=CURRICULUM)


def staged_loader(folder: Path) -> PrunedLoader:
    """A loader that is told of that schedule."""
    data, seed = digits(tiny(STAGED)), tiny().train.seed
    schedule = staged_schedule(folder)
    return PrunedLoader(data, schedule, epochs=EPOCHS, batch_size=BATCH, image_size=16, seed=seed)


def sizes_seen(model: nn.Module) -> list[int]:
    """Sizes in pixels of the batches that a network is shown, as they come."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    return sizes


class Interrupted(Exception):
    """Training was cut off."""


def train(
    loader: PrunedLoader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: ProgressLR | None = None,
    stop_after: int | None = None,
) -> None:
    """The loop that the documentation shows, cut off after so many batches."""
    scheduler = scheduler or ProgressLR(optimizer, loader, **RATES)
    done = 0
    for epoch in range(loader.epoch, loader.epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            losses = cross_entropy(model(batch["inputs"]), batch["target"], reduction="none")
            loader.loss(batch, losses).backward()
            if (batch["number"] + 1) % loader.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            done += 1
            if done == stop_after:
                raise Interrupted


def trained_by_hand(experiment: Experiment, loader: PrunedLoader, **rates: Any) -> Mapping[str, Tensor]:
    """The weights that the documented loop ends with."""
    model = network(experiment)
    optimizer = sgd(model)
    train(loader, model, optimizer, scheduler=ProgressLR(optimizer, loader, **RATES | rates))
    return model.state_dict()


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_plan(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether the same positions were shown, in the same batches."""
    return len(found) == len(expected) and all(
        torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def steps_per_epoch(loader: PrunedEpochs) -> int:
    return len(loader) // loader.accumulate


def schedule_file(
    path: Path, *, pruning: Mapping[str, Any] = PRUNING, curriculum: Mapping[str, Any] | None = None
) -> Path:
    """An exported schedule."""
    where = TunedOn(
        experiment="digits",
        run_id="0123456789abcdef",
        data={"source": "digits"},
        model={"name": "resnet8"},
        train={"epochs": float(EPOCHS)},
        workers=1,
        hardware="1 x a desk, fp32",
        package_version="0.1.0",
    )
    methods = {"pruning": dict(pruning), "curriculum": dict(curriculum or {"method": "none"})}
    return save_schedule(Schedule.model_validate({"version": 1, "tuned_on": where, **methods}), path)
