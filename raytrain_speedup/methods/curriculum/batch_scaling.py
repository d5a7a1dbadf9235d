"""What has to follow when the batch grows: the learning rate. An average of the weights whose decay follows
progress, as the engine's does, needs no rescaling."""

from __future__ import annotations

import math
from typing import Literal


def scaled_lr(factor: float, rule: Literal["constant", "sqrt", "linear"]) -> float:
    """What to multiply the learning rate by for a batch `factor` times the base batch.

    Linear for SGD (Goyal et al., 2017, https://arxiv.org/abs/1706.02677), the square root for Adam and its
    kin (Malladi et al., 2022, https://arxiv.org/abs/2205.10287).
    """
    return {"constant": 1.0, "sqrt": math.sqrt(factor), "linear": float(factor)}[rule]
