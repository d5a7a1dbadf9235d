"""Starting from a file of weights: whole, as a teacher's, or also for other classes and another image size.

Nothing in a file is ever executed. torch's own refusal of a pickle advises to switch that check off, so the reasons
given here are ours.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_speedup.models.resize import position_tables, prefix_of, resize_table
from raytrain_speedup.settings import UserError

log = logging.getLogger(__name__)

ENCODER, DECODER = "encoder.", "decoder."
"""How the names of a masked autoencoder's tensors begin (`mae.py`)."""

BACKBONE, FEATURES = "backbone.", "features."
"""How those of the backbone of torchvision's segmentation networks begin, and those of its MobileNets."""

TRUNKS = (f"{BACKBONE}body.", f"{BACKBONE}{FEATURES}")
"""How those of a detector's backbone begin that a classifier has too."""

CLASSIFIERS = ("classifier.", "fc.")
"""And those of a classifier that a backbone lacks."""

STEPS = "num_batches_tracked"
"""How the step counts of batch normalisation are called, which frozen layers (torchvision's detectors) have not."""

CLASSES_OF_BOXES = ("classification_head", "box_predictor")
"""In the names of a detector's layers whose shapes depend on the number of classes."""

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
"""What `torch.load` raises for files that are none of its own."""


def load_pretrained(model: nn.Module, path: Path, *, num_classes: int) -> None:
    """Load the state dict in `path` into `model`: of a masked autoencoder its encoder, of a classifier the backbone
    of a network for segmentation or of a detector, beside heads that start afresh.

    Raises:
        UserError: if the file can't be read or holds another network.
    """
    state = read_state_dict(path, "model.pretrained: ")
    own = model.state_dict()
    if _is_autoencoder(state) and not _is_autoencoder(own):
        head = {key: own[key] for key in classifier_keys(model, num_classes)}
        encoder = {key.removeprefix(ENCODER): state[key] for key in state if key.startswith(ENCODER)}
        state = head | encoder
    elif any(key.startswith(BACKBONE) for key in _countless(own.keys() - state.keys())):
        state = _as_backbone(state, own, path)
    fit_weights(model, state, num_classes=num_classes, where=f"model.pretrained: {path}")


def _as_backbone(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """The weights of a classifier where those of `own`'s backbone are, beside all else, which starts afresh; as
    they are where they are of no such classifier."""
    backbone = {key for key in own if key.startswith(BACKBONE)}
    if any(key.startswith(TRUNKS) for key in backbone):
        backbone = {key for key in _countless(backbone) if key.startswith(TRUNKS)}
        moved = _first_layers(state, own)
        enough = 2 * len(moved) >= len(backbone)
    else:
        moved = {BACKBONE + key.removeprefix(FEATURES): tensor for key, tensor in state.items()}
        enough = backbone <= moved.keys()
    if not enough:
        return state
    taken = backbone & moved.keys()
    log.warning(  # no fault, but what a run begins from is to be seen
        "model.pretrained: %d of the %d tensors of the backbone are those of %s; all else starts afresh",
        len(taken),
        len(backbone),
        path,
    )
    return {key: moved[key] if key in taken else own[key] for key in own}


def _first_layers(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors by the names of a detector's backbone, as far as the two are alike: torchvision keeps
    the order of the layers and renames them. (Without weights of its own, SSDlite's backbone has narrower last
    layers than a usual MobileNetV3; `model.options: {reduced_tail: true}` gives a classifier the same.)
    """
    trunk = [key for key in _countless(own) if key.startswith(TRUNKS)]
    given = [key for key in _countless(state) if not key.startswith(CLASSIFIERS)]
    found = {}
    for key, other in zip(trunk, given, strict=False):
        kinds = {name.rpartition(".")[2] for name in (key, other)}
        if len(kinds) > 1 or own[key].shape != state[other].shape:
            break
        found[key] = state[other]
    return found


def _countless(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(STEPS)]


def load_whole(network: nn.Module, path: Path) -> nn.Module:
    """Fill the network from the state dict in `path`, which has to be one of this very network.

    Raises:
        UserError: if the file can't be read, is no state dict, or is one of another network.
    """
    state = read_state_dict(path)
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        gaps = " and ".join(
            f"{verb} {_some(names)}" for verb, names in (("lacks", missing), ("also has", unknown)) if names
        )
        raise UserError(f"{path}: a state dict of another network than {type(network).__name__}: it {gaps}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}; {type(network).__name__} needs "
                f"{tuple(tensor.shape)} (is the number of classes the same?)"
            )
    network.load_state_dict(state)
    return network


def why_unreadable(error: Exception) -> str:
    """Why `torch.load` with `weights_only` refused a file, in our words.

    Args:
        error: an `OSError`, or what torch raised.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, EOFError):
        return "it is empty"
    code = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error))
    if code:
        return (
            f"it is a pickle that runs {code[1]} when it is loaded, and not weights alone, so it is refused; "
            "write them with torch.save(network.state_dict(), file)"
        )
    return "no file that torch.save wrote, or a damaged one"


def read_state_dict(path: Path, where: str = "") -> Mapping[str, Tensor]:
    """The state dict in a file of `torch.save`: all of it, or what it has under the key `model` or `state_dict`.

    Raises:
        UserError: beginning with `where`, if the file can't be read or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{where}cannot read {path}: {why_unreadable(error)}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not _is_state_dict(state):
        found = _describe(state)
        raise UserError(f"{where}{path}: holds {found}; expected a state dict (parameter names -> tensors)")
    return state


def fit_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, where: str = "model.weights"
) -> None:
    """Load `state` into `model`, its position tables resized to those of the model.

    A classifier for another number of classes keeps its fresh weights. Step counts that are missing begin anew.

    Raises:
        UserError: for anything else that does not fit, naming the first such tensors after `where`.
    """
    own = model.state_dict()
    fitted = dict(state)
    fitted |= {key: own[key] for key in own.keys() - fitted.keys() if key.endswith(STEPS)}
    for key in classifier_keys(model, num_classes):
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
    """The table resized, or as it is where it can't be: then it is reported with whatever else does not fit."""
    try:
        return resize_table(table, shape, prefix=prefix)
    except (ValueError, RuntimeError):
        return table


def classifier_keys(model: nn.Module, num_classes: int) -> list[str]:
    """Names of the classifier's parameters: of linear layers, and of a segmentation network's convolutions, that
    end in the classes; of a detector those of its layers that tell classes."""
    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes and "classifier" in name)
        or any(part in name for part in CLASSES_OF_BOXES)
        for parameter, _ in module.named_parameters(recurse=False)
    ]


def _is_autoencoder(state: Mapping[str, Tensor]) -> bool:
    return all(key.startswith((ENCODER, DECODER)) for key in state)


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
