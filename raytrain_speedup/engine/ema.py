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
        model: the model to follow, on its device; it is copied.
        decay: share of the average kept per step of a full-data run.
        full_steps: the number of steps of such a run.
    """

    def __init__(self, model: nn.Module, decay: float, full_steps: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.full_steps = full_steps
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averaged, self._followed = map(list, zip(*floats, strict=True))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, advance: float) -> None:
        """Follow the model after a step that advanced the progress by `advance`."""
        kept = self.decay ** (advance * self.full_steps)
        torch._foreach_lerp_(self._averaged, self._followed, 1 - kept)
        for averaged, count in self._counts:
            averaged.copy_(count)
