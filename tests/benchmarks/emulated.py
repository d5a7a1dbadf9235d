"""An accelerator that is waited for: as many of them as there are processes, whatever the machine.

Its network computes next to nothing. It waits as long for a sample as an accelerator would work for it, a third of
that in the forward pass and the rest in the backward pass, block by block, and the gradients of a block are there
when its part of the backward pass is over: so DDP exchanges them, for real, while earlier blocks are waited for.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = 8


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds * len(x)
        if not x.is_meta:
            time.sleep(ctx.seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        if not gradient.is_meta:
            time.sleep(2 * ctx.seconds)
        return gradient, None


class Accelerator(nn.Module):
    """A classifier of pooled channels behind blocks that wait.

    Args:
        milliseconds: of a training step, for a sample.
        parameters: of all blocks.
    """

    def __init__(self, num_classes: int, in_channels: int, milliseconds: float, parameters: float) -> None:
        super().__init__()
        self.seconds = milliseconds / 1e3 / 3 / BLOCKS
        self.blocks = nn.ParameterList(torch.zeros(int(parameters) // BLOCKS) for _ in range(BLOCKS))
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = _Wait.apply(x + block.mean(), self.seconds)
        return self.head(x.mean((2, 3)))


def accelerator(
    num_classes: int, in_channels: int = 3, milliseconds: float = 2.0, parameters: float = 2e6
) -> nn.Module:
    """What `model.name: emulated:accelerator` builds."""
    return Accelerator(num_classes, in_channels, milliseconds, parameters)
