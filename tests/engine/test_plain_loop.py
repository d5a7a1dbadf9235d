"""A disabled method changes nothing: the engine's numbers are those of a loop anyone would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_runs import CPU, same, tiny, trained

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.alarm import LossAlarm
from raytrain_speedup.engine.learning_rate import learning_rate
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.pruning import FullData, equal_epochs
from raytrain_speedup.models import build_model

DISABLED: list[dict[str, Any]] = [
    {"pruning.method": "none"},
    {"pruning.method": "infobatch", "pruning.prune_ratio": 0.0},
    {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 0.0},
    {"pruning.method": "random", "pruning.prune_ratio": 0.0},
    {"pruning.method": "epochs", "pruning.saving": 0.0},
]


def plain_loop(experiment: Experiment) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Summed losses by step and final weights of a loop without the engine."""
    train = experiment.train
    splits = open_data(experiment.data, seed=train.seed)
    loader = build_loader(splits, experiment.data, device=CPU, seed=train.seed, channels_last=True)
    torch.manual_seed(train.seed)
    model = build_model(experiment.model, num_classes=10, in_channels=1, image_size=splits.image_size)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": train.weight_decay}, {"params": spared}],
        lr=train.lr,
        momentum=train.momentum,
    )
    epochs, count = int(train.epochs), len(splits.train)
    losses = []
    model.train()
    for epoch in range(epochs):
        order = FullData(count, equal_epochs(epochs), seed=train.seed).plan(epoch).indices
        for number, index in enumerate(order.split(train.batch_size)):
            progress = (epoch + number * train.batch_size / count) / epochs
            step = Step(number, index, torch.ones(len(index)), len(index), progress, FULL)
            (batch,) = loader.train_batches([step], epoch=epoch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, train)
            loss = F.cross_entropy(model(batch["inputs"]), batch["target"], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses.append(loss.sum().item())
    return losses, model.state_dict()


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The summed loss of every step that the engine takes."""
    losses: list[float] = []

    class Recording(LossAlarm):
        def note(self, step: int, loss: torch.Tensor) -> None:
            losses.append(loss.item())
            super().note(step, loss)

    monkeypatch.setattr("raytrain_speedup.engine.loop.LossAlarm", Recording)
    return losses


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], dict[str, torch.Tensor]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return plain_loop(tiny())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("disabled", DISABLED, ids=lambda keys: "-".join(map(str, keys.values())))
def test_a_disabled_method_is_the_plain_loop_bit_for_bit(disabled, plain, curve, tmp_path: Path):
    experiment = tiny(disabled)
    _, weights, _ = trained(experiment, tmp_path)
    losses, expected = plain
    assert len(curve) == 12
    assert curve == losses
    assert same(weights, expected)


def test_a_method_that_is_on_is_not(plain, tmp_path: Path):
    _, weights, _ = trained(tiny({"pruning.method": "random", "pruning.prune_ratio": 0.5}), tmp_path)
    assert not same(weights, plain[1])
