"""Every family of docs/models.md that can change its size, made tiny."""

from __future__ import annotations

from typing import Any

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN = {"depths": (2, 2, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
PVT = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 2, 2)}
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "timm/deit_tiny_patch16_224": (VIT, (96, 160, 192, 224)),
    "timm/deit_small_patch16_224": (VIT, (96, 160, 192, 224)),
    "timm/swin_tiny_patch4_window7_224": (SWIN, (96, 160, 224)),
    "timm/swin_small_patch4_window7_224": (SWIN, (96, 160, 224)),
    "timm/swin_base_patch4_window7_224": (SWIN, (96, 160, 224)),
    "timm/convnext_tiny": (CONVNEXT, (160, 224)),
    "timm/convnext_small": (CONVNEXT, (160, 224)),
    "timm/convnext_base": (CONVNEXT, (160, 224)),
    "timm/resnet50": (RESNET, (96, 160, 224)),
    "timm/pvt_v2_b0": (PVT, (96, 160, 224)),
    "timm/swinv2_tiny_window8_256": (SWIN, (64, 96, 128)),
    # These can't be made tiny, so their images are.
    "timm/caformer_s18": ({}, (32, 64, 96)),
    "torchvision/resnet50": ({}, (32, 64, 96)),
    "torchvision/swin_t": ({}, (32, 64, 96)),
}
"""Options that make each network tiny, and the bandwidths of its family's curriculum."""
