"""The teacher: a network that is only ever asked, never changed.

It is in evaluation mode and none of its parameters requires a gradient, so a backward pass through it
computes the gradient of its input and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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


def load_teacher_weights(path: Path | str, network: nn.Module) -> nn.Module:
    """Fill the network from a state-dict file; nothing in the file is executed.

    Raises:
        UserError: if the file can't be read, is no state dict, or is one of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: not a state-dict file that torch reads with weights_only ({reason})"
        ) from error
    if not _is_state_dict(state):
        raise UserError(
            f"{path}: holds {_describe(state)}; expected a state dict (parameter names -> tensors)"
        )
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        gaps = " and ".join(
            f"{verb} {_some(names)}" for verb, names in (("lacks", missing), ("also has", unknown)) if names
        )
        raise UserError(f"{path}: a state dict of another network than the teacher's: it {gaps}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}; the teacher needs "
                f"{tuple(tensor.shape)} (is the number of classes the same?)"
            )
    network.load_state_dict(state)
    return network


def _is_state_dict(state: Any) -> bool:
    if not isinstance(state, Mapping) or not state:
        return False
    return all(isinstance(value, Tensor) for value in state.values())


def _describe(state: Any) -> str:
    if isinstance(state, Mapping):
        return f"a dict with {_some([str(key) for key in state])}" if state else "an empty dict"
    return f"a {type(state).__name__}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
