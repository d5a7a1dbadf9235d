"""Optimizers by name. LAMB and LARS are timm's; SGD and AdamW are torch's fused ones where there is a GPU."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import timm.optim
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
    build: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(
            groups, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov, **fused
        ),
        "adamw": lambda: torch.optim.AdamW(groups, lr=train.lr, betas=betas, **fused),
        # timm's LAMB clips by itself unless told not to: that is left to train.clip_norm
        "lamb": lambda: timm.optim.Lamb(groups, lr=train.lr, betas=betas, max_grad_norm=None),
        "lars": lambda: timm.optim.Lars(
            groups, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov
        ),
    }
    return build[train.optimizer]()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group, less for the lower layers where `layer_decay` asks for it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _groups(model: nn.Module, train: TrainSettings) -> list[dict[str, Any]]:
    spared: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    if train.layer_decay is None:
        return timm.optim.param_groups_weight_decay(model, train.weight_decay, no_weight_decay_list=spared)
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"train.layer_decay: {train.layer_decay} is not allowed for {type(model).__name__}, whose layers "
            "have no order; expected a timm or CSWin model"
        )
    return timm.optim.param_groups_layer_decay(
        model, train.weight_decay, no_weight_decay_list=spared, layer_decay=train.layer_decay
    )
