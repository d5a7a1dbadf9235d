"""Images by gradient descent: the loop that every method with an inner optimisation shares.

Nothing in it waits for the device: the best batch is selected by `torch.where`, and gradients are taken for
the optimised tensors alone, so neither teacher nor student accumulates any. A batch is kept only if it was
rendered *after* a step: with a single step, the adapted images are stored, not those that it started from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raytrain_speedup.methods.distillation.base import View

Keep = Literal["best", "last"]


@dataclass(frozen=True)
class Score:
    """The loss of a batch of images.

    Attributes:
        terms: the weighted terms, by name; the loss is their sum.
        view: how the teacher saw the batch.
    """

    terms: Mapping[str, Tensor]
    view: View

    @property
    def loss(self) -> Tensor:
        """The sum of the terms, 0-dimensional."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()

    def metrics(self) -> dict[str, Tensor]:
        """The terms and their sum without their graph."""
        return {"loss": self.loss.detach()} | {name: term.detach() for name, term in self.terms.items()}


def descend(
    render: Callable[[], Tensor],
    score: Callable[[Tensor], Score],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    keep: Keep,
    on_gradient: Callable[[tuple[Tensor, ...]], None] | None = None,
) -> tuple[Tensor, Score]:
    """Minimise the score of what is rendered.

    Args:
        render: the images (B, C, H, W) in [0, 1] as a function of the optimizer's parameters.
        keep: `last` returns the images rendered after the last step; `best` those of the lowest loss among
            the images rendered after each step, for one more forward pass without gradients.
        on_gradient: is given the gradients of each step, in the order of the optimizer's parameters.

    Returns:
        The images, without a graph, and the score of the last step.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    best: tuple[Tensor, Tensor] | None = None
    for step in range(steps):
        images = render()
        scored = score(images)
        loss = scored.loss
        if keep == "best" and step > 0:
            best = _better(best, images, loss)
        gradients = torch.autograd.grad(loss, parameters)
        if on_gradient is not None:
            on_gradient(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch.no_grad():
        images = render()
        if best is not None:
            images, _ = _better(best, images, score(images).loss)
    return images, scored


def _better(best: tuple[Tensor, Tensor] | None, images: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """(images, loss) of the lower loss, chosen on the device."""
    images, loss = images.detach(), loss.detach()
    if best is None:
        return images, loss
    lower = loss < best[1]
    return torch.where(lower, images, best[0]), torch.where(lower, loss, best[1])
