"""The learning rate by progress against PyTorch's schedulers by steps; the average's horizon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raytrain_speedup.config import TrainSettings
from raytrain_speedup.engine.ema import MovingAverage
from raytrain_speedup.engine.learning_rate import learning_rate


def scheduled(make, steps: int) -> list[float]:
    """What a scheduler of PyTorch gives, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_one_cycle_is_pytorchs():
    """It ends its phases on whole steps: after warmup * T - 1 of them, and at the last, T - 1."""
    steps, train = 200, TrainSettings(lr=0.4, schedule="one-cycle", warmup=0.3, start_div=25, final_div=1e4)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    rates = scheduled(lambda o: one_cycle(o, 0.4, total_steps=steps, cycle_momentum=False), steps)
    peak = 0.3 * steps - 1
    for step, rate in enumerate(rates):
        progress = 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (steps - 1 - peak)
        assert learning_rate(progress, train) == pytest.approx(rate, rel=1e-6)


def test_cosine_is_pytorchs():
    train = TrainSettings(lr=0.4, schedule="cosine", warmup=0, start_div=1, final_div=1e4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    optimizer_rates = scheduled(lambda o: cosine(o, 100, eta_min=1e-4), 101)
    for step, rate in enumerate(optimizer_rates):
        assert learning_rate(step / 100, train) == pytest.approx(0.4 * rate, rel=1e-6)


def test_warm_up_rises_linearly_and_constant_stays():
    train = TrainSettings(lr=1.0, schedule="constant", warmup=0.2, start_div=10)
    assert [learning_rate(p, train) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0.1, 0.55, 1, 1, 1])
    assert learning_rate(0.1, train.model_copy(update={"schedule": "cosine"})) == pytest.approx(0.55)


def test_the_averages_horizon_does_not_depend_on_the_number_of_steps():
    """Towards a model that does not move any more, 10 steps or 1000 leave the same distance."""

    def left(steps: int) -> float:
        model = nn.Linear(1, 1)
        nn.init.zeros_(model.weight)
        average = MovingAverage(model, decay=0.99, full_steps=100)
        nn.init.ones_(model.weight)
        for _ in range(steps):
            average.update(model, 1 / steps)
        return 1 - average.module.weight.item()

    assert left(10) == pytest.approx(0.99**100, rel=1e-4)
    assert left(1000) == pytest.approx(0.99**100, rel=1e-4)


def test_the_average_follows_statistics_and_counts_too():
    model = nn.BatchNorm1d(1)
    average = MovingAverage(model, decay=0.5, full_steps=4)
    for value in (2.0, 2.0):
        model(torch.tensor([[value], [value]]))
        average.update(model, 0.25)
    assert average.module.num_batches_tracked == 2
    assert model.running_mean.item() == pytest.approx(0.38)
    assert average.module.running_mean.item() == pytest.approx(0.5 * (0.5 * 0.2) + 0.5 * 0.38)


def test_the_average_follows_tensors_that_were_replaced():
    """As a position table is when the size of the inputs changes."""
    model = nn.Linear(1, 2, bias=False)
    average = MovingAverage(model, decay=0.5, full_steps=1)
    for network in (model, average.module):
        network.weight.data = torch.zeros(3, 1)
    model.weight.data += 1
    average.update(model, 1.0)
    assert average.module.weight.tolist() == [[0.5]] * 3
