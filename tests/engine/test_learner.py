"""One optimizer step: in how many pieces a batch is computed."""

from __future__ import annotations

import pytest
import torch
from engine_runs import CPU
from torch import nn

from raytrain_speedup.config import TrainSettings
from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.learner import Learner
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.tasks.classification import Classification


@pytest.mark.parametrize(
    ("length", "expected"),
    [(16, [4, 4, 4, 4]), (17, [4, 4, 4, 5]), (9, [3, 3, 3]), (5, [2, 3]), (3, [3]), (2, [2])],
)
def test_what_is_left_of_an_epoch_is_cut_no_finer_than_a_whole_batch(length: int, expected: list[int]):
    """Batch normalisation refuses a single sample."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    sizes: list[int] = []
    model[0].register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    train = TrainSettings(batch_size=16, accumulate=4)
    learner = Learner(model, Classification(), train, device=CPU, rank=0, world=1, full_size=2, full_steps=10)
    index, weight = torch.arange(length), torch.ones(length)
    batch = {
        "inputs": torch.randn(length, 1, 2, 2),
        "target": index % 2,
        "index": index,
        "weight": weight,
    }
    losses = learner.step(Step(0, index, weight, length, 0.0, FULL), batch, lr=0.1, epoch=0, advance=0.1)
    assert sizes == expected and losses.scores.shape == (length,)
