"""Evaluation: every sample once, as the network is in use, and nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_runs import CPU, equal, tiny
from torch import nn

from raytrain_speedup.data import Loader, build_loader, open_data
from raytrain_speedup.engine.evaluate import evaluate, evaluating
from raytrain_speedup.tasks.classification import Classification


@pytest.fixture(scope="module")
def loader() -> Loader:
    experiment = tiny()
    return build_loader(open_data(experiment.data, seed=0), experiment.data, device=CPU, seed=0)


def judged(model: nn.Module, loader: Loader, split: Any, batch_size: int) -> dict[str, float]:
    no_cast = torch.autocast("cpu", enabled=False)
    return evaluate(model, Classification(), loader, split, batch_size=batch_size, autocast=no_cast)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_as_in_use_and_then_as_it_was(training: bool, loader: Loader):
    """With dropout and batch statistics, the size of a batch would matter; and nothing is learned or drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10)).train(
        training
    )
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()]
    whole = judged(model, loader, "test", 500)
    parts = judged(model, loader, "test", 7)
    assert parts == {name: pytest.approx(value, rel=1e-5) for name, value in whole.items()}
    assert equal([dict(model.state_dict()), torch.get_rng_state()], before)
    assert model.training == model[2].training == training
    assert judged(model, loader, "val", 500)["loss"] != whole["loss"]


def test_the_mode_comes_back_after_an_error_too():
    model = nn.Linear(1, 1).train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        1 / 0  # noqa: B018
    assert model.training
