"""Changing a model's image size in mid-run: tables, moments, EMA, and every family at its bandwidths."""

from __future__ import annotations

from typing import Any

from raytrain_speedup.models import ModelSettings

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN = {"depths": (2, 2, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
PVT = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 2, 2)}
CAFORMER = {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64)}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "deit_t": ("timm/deit_tiny_patch16_224", VIT, (96, 160, 192, 224)),
    "deit_s": ("timm/deit_small_patch16_224", VIT, (96, 160, 192, 224)),
    "swin_t": ("timm/swin_tiny_patch4_window7_224", SWIN, (96, 160, 224)),
    "swin_s": ("timm/swin_small_patch4_window7_224", SWIN, (96, 160, 224)),
    "swin_b": ("timm/swin_base_patch4_window7_224", SWIN, (96, 160, 224)),
    "convnext_t": ("timm/convnext_tiny", CONVNEXT, (160, 224)),
    "convnext_s": ("timm/convnext_small", CONVNEXT, (160, 224)),
    "convnext_b": ("timm/convnext_base", CONVNEXT, (160, 224)),
    "resnet50": ("timm/resnet50", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, (96, 160, 224)),
    "pvt_v2": ("timm/pvt_v2_b0", PVT, (96, 160, 224)),
    "caformer_s18": ("timm/caformer_s18", CAFORMER, (96, 160, 224)),
}
"""Real name, options that make it tiny, and the bandwidths of its curriculum."""
SMALL_VIT = ModelSettings(name="timm/deit_tiny_patch16_224", options=VIT)
SMALL_SWIN = ModelSettings(name="timm/swin_tiny_patch4_window7_224", options=SWIN)
