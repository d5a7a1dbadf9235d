"""Optimizers by name. LAMB, LARS and Muon are timm's; SGD and AdamW are torch's fused ones where there is a GPU.

timm is imported where something of it is asked for: it takes as long as the whole of this package.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from raytrain_speedup.config import TrainSettings
from raytrain_speedup.settings import UserError


def build_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of an experiment.

    Vectors (biases, normalisations) are not decayed, nor what a timm model exempts by its `no_weight_decay`: the
    position tables of ViT and Swin, class tokens.
    """
    if train.optimizer == "muon":
        return _muon(model, train)
    groups = _groups(model, train)
    betas = (train.momentum, train.beta2)
    # The fused kernels take GradScaler's verdict on the device; the others would wait for it (fp16).
    fused = {"fused": True} if next(model.parameters()).is_cuda else {}
    sgd: dict[str, Any] = {"lr": train.lr, "momentum": train.momentum, "nesterov": train.nesterov}
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, **sgd, **fused)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=betas, **fused)
    import timm.optim

    if train.optimizer == "lars":
        return timm.optim.Lars(groups, **sgd)
    # It clips by itself unless told not to: that is left to train.clip_norm.
    return timm.optim.Lamb(groups, lr=train.lr, betas=betas, max_grad_norm=None)


def _muon(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024): the momentum of a matrix is made orthogonal before it is a step.

    Its steps are scaled to those of AdamW (Liu et al., arXiv 2502.16982, section 2.2), which takes what is no
    matrix between hidden layers: vectors, embeddings, position tables and the classifier.
    """
    if train.layer_decay is not None:
        raise UserError(f"train.layer_decay: {train.layer_decay} is not allowed with muon; expected null")
    import timm.optim

    linear = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    tables = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    outer = {*linear[-1:], *tables}
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter, exempt in _trained(model):
        decay = 0.0 if exempt else train.weight_decay
        kinds.setdefault((decay, exempt or name in outer), []).append(parameter)
    return timm.optim.Muon(
        [
            {"params": those, "weight_decay": decay, "use_fallback": beside}
            for (decay, beside), those in sorted(kinds.items())
        ],
        lr=train.lr,
        momentum=train.momentum,
        nesterov=train.nesterov,
        betas=(0.9, train.beta2),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group, less for the lower layers where `layer_decay` asks for it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _groups(model: nn.Module, train: TrainSettings) -> list[dict[str, Any]]:
    if train.layer_decay is None:
        kinds: dict[float, list[nn.Parameter]] = {}
        for _, parameter, exempt in _trained(model):
            kinds.setdefault(0.0 if exempt else train.weight_decay, []).append(parameter)
        return [{"params": those, "weight_decay": decay} for decay, those in sorted(kinds.items())]
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"train.layer_decay: {train.layer_decay} is not allowed for {type(model).__name__}, whose layers "
            "have no order; expected a timm or CSWin model"
        )
    import timm.optim

    return timm.optim.param_groups_layer_decay(
        model, train.weight_decay, no_weight_decay_list=_spared(model), layer_decay=train.layer_decay
    )


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """What is trained, by name, and whether it is exempt from decay."""
    spared = _spared(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 or name.endswith(".bias")
            yield name, parameter, vector or any(fnmatch(name, pattern) for pattern in spared)


def _spared(model: nn.Module) -> Collection[str]:
    return getattr(model, "no_weight_decay", tuple)()
