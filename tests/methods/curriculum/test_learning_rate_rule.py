"""The learning rate follows the batch."""

from __future__ import annotations

import pytest

from raytrain_speedup.methods.curriculum.base import scaled_lr


@pytest.mark.parametrize(("rule", "expected"), [("constant", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_learning_rate(rule: str, expected: float) -> None:
    assert scaled_lr(4, rule) == expected
    assert scaled_lr(1, rule) == 1.0
