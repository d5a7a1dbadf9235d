"""From latent codes to images in [0, 1]: the generators of FastDFKD (https://arxiv.org/abs/2112.06253).

BN layers keep no running statistics: a generator is only ever used on the batch that it is being adapted to.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from raytrain_speedup.settings import UserError

Architecture = Literal["small", "deep"]
_SLOPE = 0.2


class Generator(nn.Module):
    """Latent codes (B, *latent_shape) -> images (B, C, H, W) in [0, 1].

    Args:
        image_shape: (C, H, W).
        width: channels before the last layer.
        latent: channels of the latent code.

    Attributes:
        latent_shape: shape of one latent code.
        first: the first layer with weights, the one that `reset_first_layer` draws anew.
        layers: up to the logits of the pixels.
    """

    latent_shape: tuple[int, ...]
    first: nn.Linear | nn.Conv2d
    layers: nn.Sequential

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).float().sigmoid()  # bfloat16 has fewer levels below 1 than the pool's 8 bits

    def sample_latent(self, batch: int, rng: torch.Generator) -> Tensor:
        """Standard normal codes (batch, *latent_shape) on the device of `rng`."""
        return torch.randn(batch, *self.latent_shape, generator=rng, device=rng.device)


class SmallGenerator(Generator):
    """For CIFAR and smaller: a linear layer to a quarter of the side, then two doublings."""

    def __init__(self, image_shape: tuple[int, int, int], *, width: int = 64, latent: int = 256) -> None:
        super().__init__()
        channels, height, side = image_shape
        _check_sides(image_shape, 4, "small")
        start = (2 * width, height // 4, side // 4)
        self.latent_shape = (latent,)
        self.first = nn.Linear(latent, math.prod(start))
        self.layers = nn.Sequential(
            self.first,
            nn.Unflatten(1, start),
            _norm(2 * width),
            *_doubling(2 * width, 2 * width),
            *_doubling(2 * width, width),
            nn.Conv2d(width, channels, 3, padding=1),
        )


class DeepGenerator(Generator):
    """For ImageNet: the latent is a map (256 x 14 x 14 for images of 224), then come four doublings.

    Its channels are the authors': 128, 128, 64, 64, 64 for a width of 64.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, width: int = 64, latent: int = 256) -> None:
        super().__init__()
        channels, height, side = image_shape
        _check_sides(image_shape, 16, "deep")
        self.latent_shape = (latent, height // 16, side // 16)
        self.first = nn.Conv2d(latent, 2 * width, 3, padding=1, bias=False)
        self.layers = nn.Sequential(
            self.first,
            _norm(2 * width),
            nn.LeakyReLU(_SLOPE, inplace=True),
            *_doubling(2 * width, 2 * width),
            *_doubling(2 * width, width),
            *_doubling(width, width),
            *_doubling(width, width),
            nn.Conv2d(width, channels, 3, padding=1),
        )


def build_generator(
    architecture: Architecture,
    image_shape: tuple[int, int, int],
    *,
    width: int,
    latent: int,
    rng: torch.Generator,
    output_norm: bool = False,
) -> Generator:
    """A generator on the device of `rng`, with weights drawn from `rng` alone.

    Args:
        output_norm: whether the logits of the pixels pass a batch norm, so that every batch of images has the
            same contrast.

    Raises:
        UserError: if the image size is no multiple of what the architecture doubles.
    """
    kind = SmallGenerator if architecture == "small" else DeepGenerator
    with torch.device("meta"):  # no memory and, above all, no draw from the global generator
        generator = kind(image_shape, width=width, latent=latent)
        if output_norm:
            generator.layers.append(_norm(image_shape[0]))
    generator.to_empty(device=rng.device)
    initialise(generator, rng)
    return generator


def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draw all weights anew: linear and convolution layers by torch's own scheme, norms as identities."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound, generator=rng)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=rng)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _doubling(channels: int, out: int) -> list[nn.Module]:
    return [
        nn.Upsample(scale_factor=2),
        nn.Conv2d(channels, out, 3, padding=1, bias=False),
        _norm(out),
        nn.LeakyReLU(_SLOPE, inplace=True),
    ]


def _check_sides(image_shape: tuple[int, int, int], multiple: int, name: str) -> None:
    if any(side % multiple for side in image_shape[1:]):
        height, width = image_shape[1:]
        raise UserError(
            f"data.image_size: {height} x {width}; the {name} generator needs multiples of {multiple}"
        )
