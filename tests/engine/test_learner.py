"""One optimizer step: its pieces, its gradients in half precision, its draws, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_runs import CPU, equal
from torch import Tensor, nn

from raytrain_speedup.config import TrainSettings
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.engine.learner import Learner, StepLosses
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.tasks.classification import Classification


def network() -> nn.Sequential:
    """For images of 1 x 2 x 2 and two classes, with batch statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))


def learner(model: nn.Module, *, rank: int = 0, **train: Any) -> Learner:
    settings = TrainSettings(batch_size=16, weight_decay=0.0, **train)
    return Learner(
        model, Classification(), settings, device=CPU, rank=rank, world=1, full_size=2, full_steps=10
    )


def batch_of(length: int, scale: float = 1.0) -> Batch:
    inputs = scale * torch.randn(length, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    index = torch.arange(length)
    return {"inputs": inputs, "target": index % 2, "index": index, "weight": 1.0 + index % 3}


def take(learner: Learner, batch: Batch, *, count: int | None = None, lr: float = 1.0) -> StepLosses:
    """A step on a batch, which is all of `count` samples or a part of them."""
    step = Step(0, batch["index"], batch["weight"], count or len(batch["index"]), 0.0, FULL)
    return learner.step(step, batch, lr=lr, epoch=0, advance=0.1)


def gradient(batch: Batch) -> Tensor:
    """Of the weighted mean at the first weights of `linear()`."""
    model = linear()
    loss = F.cross_entropy(model(batch["inputs"]), batch["target"], reduction="none")
    (loss * batch["weight"]).mean().backward()
    assert isinstance(model[1].weight.grad, Tensor)
    return model[1].weight.grad


@pytest.mark.parametrize(
    ("length", "expected"),
    [(16, [4, 4, 4, 4]), (17, [4, 4, 4, 5]), (9, [3, 3, 3]), (5, [2, 3]), (3, [3]), (2, [2])],
)
def test_what_is_left_of_an_epoch_is_cut_no_finer_than_a_whole_batch(length: int, expected: list[int]):
    """Batch normalisation refuses a single sample."""
    model = network()
    sizes: list[int] = []
    model[0].register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    losses = take(learner(model, accumulate=4), batch_of(length))
    assert sizes == expected and losses.scores.shape == (length,)


def test_the_mean_is_over_the_samples_of_all_ranks():
    """A rank with 5 of 20 samples moves the weights by a quarter of what it would alone."""
    model, batch = linear(), batch_of(5)
    before = model[1].weight.detach().clone()
    losses = take(learner(model, momentum=0.0), batch, count=20)
    torch.testing.assert_close(before - model[1].weight, gradient(batch) / 4)
    unweighted = F.cross_entropy(linear()(batch["inputs"]), batch["target"], reduction="none")
    torch.testing.assert_close(losses.scores, unweighted.detach())
    torch.testing.assert_close(losses.weighted_sum, (unweighted * batch["weight"]).sum().detach())


@pytest.mark.parametrize("largest", [0.1, 100.0])
def test_half_precision_gradients_are_clipped_at_their_true_size(largest: float):
    """The scaler has multiplied them by 65,536 before."""
    model, batch = linear(), batch_of(16)
    before = model[1].weight.detach().clone()
    take(learner(model, precision="fp16", clip_norm=largest, momentum=0.0), batch)
    moved, true = before - model[1].weight.detach(), gradient(batch)
    assert 0.1 < true.norm() < 100
    torch.testing.assert_close(moved, true * min(1.0, largest / true.norm().item()), rtol=0.02, atol=1e-3)


def test_a_step_that_overflows_half_precision_is_left_out():
    model = linear()
    half = learner(model, precision="fp16", clip_norm=1.0)
    before = model[1].weight.detach().clone()
    take(half, batch_of(16, scale=6e4))  # as a gradient it does not fit, multiplied by 65,536
    assert torch.equal(model[1].weight, before)
    assert half.scaler.get_scale() == 65536 / 2
    take(half, batch_of(16))
    assert not torch.equal(model[1].weight, before)


def test_another_learner_takes_up_all_of_its_state():
    """Weights, average, moments and the scale of half precision; and the next step is the same."""
    first = learner(network(), precision="fp16", ema_decay=0.5)
    for length in (16, 7):
        take(first, batch_of(length), lr=0.1)
    second = learner(network(), precision="fp16", ema_decay=0.5)
    assert not equal(second.state_dict(), first.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as a file does
    assert equal(second.state_dict(), first.state_dict())
    assert first.state_dict()["scaler"]["_growth_tracker"] == 2
    for each in (first, second):
        take(each, batch_of(9), lr=0.1)
    assert equal(second.state_dict(), first.state_dict())


def test_what_a_network_draws_is_a_function_of_seed_and_rank():
    def drawn(rank: int, seed: int = 0) -> Tensor:
        torch.manual_seed(5)  # where its first weights left the generator
        learner(nn.Linear(1, 1), rank=rank, seed=seed)
        return torch.rand(4)

    torch.manual_seed(5)
    nn.Linear(1, 1)
    expected = torch.rand(4)
    assert torch.equal(drawn(0), expected), "a single worker goes on as ever"
    assert torch.equal(drawn(1), drawn(1))
    others = [drawn(0), drawn(1), drawn(2), drawn(1, seed=1), drawn(2, seed=1)]
    assert len({tuple(values.tolist()) for values in others}) == len(others)
