"""What has to follow when the batch grows: the learning rate and the decay of an averaged model."""

from __future__ import annotations

import math
from typing import Literal


def scaled_lr(factor: float, rule: Literal["constant", "sqrt", "linear"]) -> float:
    """What to multiply the learning rate by for a batch `factor` times the base batch.

    Linear for SGD (Goyal et al., 2017, https://arxiv.org/abs/1706.02677), the square root for Adam and its
    kin (Malladi et al., 2022, https://arxiv.org/abs/2205.10287).
    """
    return {"constant": 1.0, "sqrt": math.sqrt(factor), "linear": float(factor)}[rule]


def rescaled_ema_decay(decay: float, factor: float) -> float:
    """The decay per step that forgets as much per sample when a batch is `factor` times the base batch.

    One step with the result replaces `factor` steps with `decay` (Busbridge et al., 2023,
    https://arxiv.org/abs/2307.13813).
    """
    return decay**factor
