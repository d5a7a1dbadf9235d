"""The teacher: a network that is only ever asked, never changed.

It is in evaluation mode and none of its parameters requires a gradient, so a backward pass through it
computes the gradient of its input and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raytrain_speedup.settings import UserError


def freeze(network: nn.Module) -> nn.Module:
    """The same network in evaluation mode, with no parameter that requires or holds a gradient."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return network.eval()


@contextmanager
def borrowed(student: nn.Module, *, batch_statistics: bool = False) -> Iterator[nn.Module]:
    """The student as a fixed judge of images: evaluation mode, no parameter gradients; then as it was.

    Args:
        batch_statistics: whether its BN layers normalise by the batch, as in training, and not by what they learnt.
            They learn nothing from it.
    """
    norms = [m for m in student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = [(module, module.training) for module in student.modules()]
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        student.eval()
        if batch_statistics:
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
        yield student
    finally:
        for norm in norms:
            norm.track_running_stats = True
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
