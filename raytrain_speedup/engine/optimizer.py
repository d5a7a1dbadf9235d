"""Optimizers by name. LAMB and LARS are timm's; SGD and AdamW are torch's fused ones where there is a GPU.

timm is imported where something of it is asked for: it takes as long as the whole of this package.
"""

from __future__ import annotations

from collections.abc import Collection
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


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group, less for the lower layers where `layer_decay` asks for it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _groups(model: nn.Module, train: TrainSettings) -> list[dict[str, Any]]:
    spared: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    if train.layer_decay is None:
        kinds: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                vector = parameter.ndim <= 1 or name.endswith(".bias")
                exempt = vector or any(fnmatch(name, pattern) for pattern in spared)
                kinds.setdefault(0.0 if exempt else train.weight_decay, []).append(parameter)
        return [{"params": those, "weight_decay": decay} for decay, those in sorted(kinds.items())]
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"train.layer_decay: {train.layer_decay} is not allowed for {type(model).__name__}, whose layers "
            "have no order; expected a timm or CSWin model"
        )
    import timm.optim

    return timm.optim.param_groups_layer_decay(
        model, train.weight_decay, no_weight_decay_list=spared, layer_decay=train.layer_decay
    )
