"""Dropping a transformer's tokens in training: it sees a random part of the patches of each image.

PatchDropout (Liu et al., WACV 2023, https://arxiv.org/abs/2208.07220). Patches are dropped after they were embedded
and given their positions, so nothing else of the network knows; prefix tokens (the class token) stay, and in
evaluation all patches do. It needs a network whose `patch_drop` stands at that place: timm's ViT, DeiT and kin.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenDropout(nn.Module):
    """Keep a random part of the tokens (B, T, C) of each sample, in random order; those of the prefix stay first.

    Args:
        prefix: leading tokens that are no patches.

    Attributes:
        kept: fraction of the patches that stay in training; one at least does.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.kept = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, prefix + P, C) -> (B, prefix + round(kept P), C) in training."""
        if not self.training or self.kept == 1:
            return x
        first, patches = x[:, : self.prefix], x[:, self.prefix :]
        count = max(1, round(self.kept * patches.shape[1]))
        order = torch.rand(patches.shape[:2], device=x.device).argsort(1)[:, :count]
        return torch.cat([first, patches.gather(1, order.unsqueeze(2).expand(-1, -1, x.shape[2]))], dim=1)


def can_drop_tokens(model: nn.Module) -> bool:
    """Whether the network has a place to drop patches at."""
    return isinstance(getattr(model, "patch_drop", None), nn.Identity | TokenDropout)


def keep_tokens(model: nn.Module, fraction: float) -> None:
    """Make the network keep this fraction of its patches in training, from the next step on.

    A network that drops none is left as it is, whatever it is.
    """
    layer = getattr(model, "patch_drop", None)
    if isinstance(layer, TokenDropout):
        layer.kept = fraction
    elif fraction < 1:
        model.patch_drop = TokenDropout(model.num_prefix_tokens)  # type: ignore[arg-type]
        keep_tokens(model, fraction)
