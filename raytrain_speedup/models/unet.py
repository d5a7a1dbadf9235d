"""diffusers' U-Net for images: what is noise in an image, told how noisy it is.

DDPM (Ho et al., NeurIPS 2020, https://arxiv.org/abs/2006.11239, app. B). The network is diffusers' own, so that a
run's `model.pt` is a state dict that diffusers' `UNet2DModel` loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from raytrain_speedup.optional import optional_library
from raytrain_speedup.settings import UserError

UNET = "UNet2DModel"


def diffusers_class(name: str, key: str) -> Any:
    """A class of diffusers, whose import takes seconds.

    Args:
        name: of the class.
        key: of the experiment file, that asks for it.

    Raises:
        UserError: naming the extra, where diffusers or what it needs is not installed.
    """
    optional_library(
        "transformers", key=key, extra="diffusion"
    )  # diffusers' classes import it when they are named
    return getattr(optional_library("diffusers", key=key, extra="diffusion"), name)


def build_diffusers(
    name: str,
    *,
    in_channels: int,
    image_size: int,
    drop_rate: float,
    drop_path: float,
    options: Mapping[str, Any],
) -> nn.Module:
    """diffusers' network, called with noisy images (b, C, H, W) and time steps (b,).

    Raises:
        UserError: if it is another one than `UNet2DModel`, or does not take these options or sizes.
    """
    where = f"diffusers/{name}"
    if name != UNET:
        raise UserError(f"model.name: there is no model '{where}'; expected diffusers/{UNET}")
    if drop_path:
        raise UserError(f"model.drop_path: {where} has no stochastic depth; expected 0, got {drop_path:g}")
    network = diffusers_class(UNET, f"model.name: {where}")
    try:
        model: nn.Module = network(
            sample_size=image_size,
            in_channels=in_channels,
            out_channels=in_channels,
            dropout=drop_rate,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"model.options: {where} does not take {', '.join(options)}: {error}") from error
    if image_size % (stride := unet_stride(model)):
        raise UserError(f"data.image_size: {image_size} is no multiple of {stride}, by which {where} scales")
    return model


def unet_stride(model: Any) -> int:
    """By how much a U-Net of diffusers scales images down: each block but the last halves them."""
    return 2 ** (len(model.config.block_out_channels) - 1)
