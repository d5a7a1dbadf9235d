"""A moving average of the weights whose horizon is measured in progress, not in steps.

Pruned epochs have fewer steps and large early batches too; a decay per step would then average over more of
the training. Here the decay is given per step of a full-data run and is raised to the steps such a run would
have taken meanwhile.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of a model's parameters and floating-point buffers.

    Args:
        model: the model to follow; it is copied.
        decay: fraction of the average kept per step of a full-data run.
        full_steps: the number of steps of such a run.
    """

    def __init__(self, model: nn.Module, decay: float, full_steps: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.full_steps = full_steps

    @torch.no_grad()
    def update(self, model: nn.Module, advance: float) -> None:
        """Follow `model` after a step that advanced the progress by `advance`."""
        kept = self.decay ** (advance * self.full_steps)
        # gathered in every step, because a change of the input size puts other tensors in their place
        averaged = [*self.module.parameters(), *self.module.buffers()]
        followed = [*model.parameters(), *model.buffers()]
        pairs = [pair for pair in zip(averaged, followed, strict=True) if pair[0].is_floating_point()]
        torch._foreach_lerp_([pair[0] for pair in pairs], [pair[1] for pair in pairs], 1 - kept)
        for average, count in zip(averaged, followed, strict=True):
            if not average.is_floating_point():
                average.copy_(count)
