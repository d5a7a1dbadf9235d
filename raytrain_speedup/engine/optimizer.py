"""Optimizers by name. LAMB and LARS are timm's; SGD and AdamW are torch's fused ones where there is a GPU."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from torch import nn

from raytrain_speedup.config import TrainSettings


def build_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of an experiment; vectors (biases, normalisations) are not decayed."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
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
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
