"""Learning rate and averaging follow the batch."""

from __future__ import annotations

import pytest
import torch

from raytrain_speedup.methods.curriculum.batch_scaling import rescaled_ema_decay, scaled_lr


@pytest.mark.parametrize(("rule", "expected"), [("constant", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_learning_rate(rule: str, expected: float) -> None:
    assert scaled_lr(4, rule) == expected
    assert scaled_lr(1, rule) == 1.0


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_one_large_step_averages_as_many_small_ones(factor: int) -> None:
    average, parameter = torch.tensor(1.0, dtype=torch.float64), 3.0
    small = average
    for _ in range(factor):
        small = 0.99 * small + 0.01 * parameter
    decay = rescaled_ema_decay(0.99, factor)
    torch.testing.assert_close(decay * average + (1 - decay) * parameter, small)
