"""The teacher: a network that is only ever asked, never changed.

It is in evaluation mode and none of its parameters requires a gradient, so a backward pass through it
computes the gradient of its input and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from raytrain_speedup.settings import UserError


def freeze(network: nn.Module) -> nn.Module:
    """The same network in evaluation mode, with no parameter that requires or holds a gradient."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return network.eval()


@contextmanager
def borrowed(student: nn.Module) -> Iterator[nn.Module]:
    """The student as a fixed judge of images: evaluation mode, no parameter gradients; then as it was."""
    modes = [(module, module.training) for module in student.modules()]
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield student.eval()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor, or the entry `out` (torchvision's segmentation models).

    Raises:
        UserError: for anything else.
    """
    if isinstance(output, Mapping) and "out" in output:
        output = output["out"]
    if not isinstance(output, Tensor):
        raise UserError(
            f"teacher: its output is a {type(output).__name__}, not a tensor or a dict with 'out'"
        )
    return output
