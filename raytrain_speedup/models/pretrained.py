"""Starting from a file of weights, also for another number of classes and another image size."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from raytrain_speedup.models.resize import position_tables, prefix_of, resize_table
from raytrain_speedup.settings import UserError

log = logging.getLogger(__name__)


def load_pretrained(model: nn.Module, path: Path, *, num_classes: int) -> None:
    """Load the state dict in `path` (plain, or under the key `model` or `state_dict`) into `model`.

    Raises:
        UserError: if the file can't be read or holds another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"model.pretrained: cannot read {path}: {error}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.pretrained: {path} holds no state dict of tensors")
    fit_weights(model, state, num_classes=num_classes, where=f"model.pretrained: {path}")


def fit_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, where: str = "model.weights"
) -> None:
    """Load `state` into `model`, its position tables resized to those of the model.

    A classifier for another number of classes keeps its fresh weights.

    Raises:
        UserError: for anything else that does not fit, naming the first such tensors after `where`.
    """
    own = model.state_dict()
    fitted = dict(state)
    for key in _classifier_keys(model, num_classes):
        if key in fitted and fitted[key].shape != own[key].shape:
            log.info("%s is for %d classes: it starts afresh", key, len(fitted[key]))
            fitted[key] = own[key]
    for key in position_tables(model):
        if key in fitted and fitted[key].shape != own[key].shape:
            fitted[key] = _fit_table(fitted[key], own[key].shape, prefix=prefix_of(model, key))
    wrong = [f"{key} is missing" for key in own if key not in fitted]
    wrong += [f"{key} is not of this model" for key in fitted if key not in own]
    wrong += [
        f"{key} is {tuple(fitted[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in fitted and fitted[key].shape != own[key].shape
    ]
    if wrong:
        raise UserError(f"{where} does not fit {type(model).__name__}: {'; '.join(wrong[:4])}")
    model.load_state_dict(fitted)


def _fit_table(table: Tensor, shape: torch.Size, *, prefix: int) -> Tensor:
    """The table resized, or as it is where it can't be: then it is told with whatever else does not fit."""
    try:
        return resize_table(table, shape, prefix=prefix)
    except (ValueError, RuntimeError):
        return table


def _classifier_keys(model: nn.Module, num_classes: int) -> list[str]:
    """Of the linear layers, and of a segmentation network's convolutions, that end in the classes."""
    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes and "classifier" in name)
        for parameter, _ in module.named_parameters(recurse=False)
    ]
