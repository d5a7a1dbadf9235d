"""A masked autoencoder: a ViT of timm that sees a part of an image's patches, and a decoder that fills in the rest.

MAE (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, https://arxiv.org/abs/2111.06377).
The encoder is timm's network as it is, under the name `encoder`, so that its weights go to a classifier of the same
name (`model.pretrained`); the decoder is only there for pre-training. As in the paper all linear layers start from
Xavier's uniform distribution and the position tables from sines and cosines. The tables are trained here, because
those of timm are, and because they have to follow the image size of a curriculum (`resize.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raytrain_speedup import randomness
from raytrain_speedup.models.library import build_timm
from raytrain_speedup.models.resize import position_tables, prefix_of
from raytrain_speedup.settings import UserError

EPSILON = 1e-6
"""Of the decoder's layer normalisations, as in timm's ViT."""


TRANSFORMERS = ("vision_transformer", "deit")
"""Modules of timm whose networks are plain vision transformers."""


class Reconstruction(NamedTuple):
    """What the decoder makes of images of which it has seen a part."""

    prediction: Tensor
    """(b, P, D): for every patch, in row-major order."""
    masked: Tensor
    """(b, P) bool: which of them were not seen."""


class Features(NamedTuple):
    """What the encoder makes of whole images."""

    values: Tensor
    """(b, C): the mean over the patches' tokens."""
    num_classes: int
    """How many classes the data have; the autoencoder has no use for them, but who probes it has."""


class Decoder(nn.Module):
    """Narrow transformer from the tokens of visible patches to a prediction for every patch.

    Args:
        width: of the encoder's tokens.
        dim: of the decoder's.
        depth: blocks.
        heads: of each block.
        patches: P of a whole image.
        outputs: D, numbers predicted for a patch.
    """

    def __init__(self, width: int, *, dim: int, depth: int, heads: int, patches: int, outputs: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, dim))

        norm: Any = partial(nn.LayerNorm, eps=EPSILON)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        self.norm = norm(dim)
        self.head = nn.Linear(dim, outputs)

    def forward(self, prefix: Tensor, seen: Tensor, visible: Tensor) -> Tensor:
        """(b, P, D) from the prefix tokens (b, T, C), those of visible patches (b, V, C), and which these are,
        `visible` (b, V) int64."""
        prefix, seen = self.embed(prefix), self.embed(seen)
        tokens = self.mask_token.to(seen.dtype).expand(len(seen), self.pos_embed.shape[1], -1)
        tokens = tokens.scatter(1, _along(visible, seen), seen) + self.pos_embed  # (b, P, dim)
        tokens = self.norm(self.blocks(torch.cat([prefix, tokens], 1)))
        return self.head(tokens[:, prefix.shape[1] :])


class MaskedAutoencoder(nn.Module):
    """Asked with images alone, it gives the encoder's `Features`; with keys beside them, a `Reconstruction`.

    Which patches are masked is a function of a sample's key alone, so that a step does not depend on who takes it.

    Args:
        encoder: timm's vision transformer, made for square images of a fixed size.
        num_classes: of the data.
        channels: of an image.
        decoder_dim: of the decoder's tokens.
        decoder_depth: its blocks.
        decoder_heads: of each block.
        decoder_outputs: numbers that are predicted for a patch; by default its pixels.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        num_classes: int,
        channels: int,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        side = self.patch_embed.patch_size[0]
        self.decoder = Decoder(
            encoder.embed_dim,
            dim=decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
            patches=self.patch_embed.num_patches,
            outputs=decoder_outputs or side * side * channels,
        )
        self._initialise()

    def forward(
        self, images: Tensor, keys: Tensor | None = None, mask_ratio: float = 0.75
    ) -> Features | Reconstruction:
        """The features of images (b, C, H, W), or where `keys` (b,) int64 are given, what is made of images of
        which `mask_ratio` of the patches are masked, rounded, and one at least is not."""
        if keys is None:
            tokens = self.encoder.forward_features(images)
            return Features(tokens[:, self._prefix :].mean(1), self.num_classes)
        tokens = self.encoder._pos_embed(self.patch_embed(images))
        prefix, patches = tokens[:, : self._prefix], tokens[:, self._prefix :]
        visible = visible_patches(keys, patches.shape[1], mask_ratio)
        tokens = torch.cat([prefix, patches.gather(1, _along(visible, patches))], 1)
        tokens = self.encoder.norm(self.encoder.blocks(self.encoder.norm_pre(tokens)))
        prediction = self.decoder(tokens[:, : self._prefix], tokens[:, self._prefix :], visible)
        masked = torch.ones(patches.shape[:2], dtype=torch.bool, device=images.device)
        return Reconstruction(prediction, masked.scatter(1, visible, False))

    @property
    def patch_embed(self) -> Any:
        """timm's, which knows the image size."""
        return self.encoder.patch_embed

    @property
    def feature_info(self) -> Any:
        """timm's, which knows the stride."""
        return self.encoder.feature_info

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Take images of another size; the decoder's table starts afresh (`change_size` resizes the old one)."""
        self.encoder.set_input_size(img_size=img_size)
        old = self.decoder.pos_embed
        shape = (1, self.patch_embed.num_patches, old.shape[2])
        self.decoder.pos_embed = nn.Parameter(old.new_zeros(shape))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not to be decayed."""
        own = {"decoder.pos_embed", "decoder.mask_token"}
        return own | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    @property
    def _prefix(self) -> int:
        return self.encoder.num_prefix_tokens

    @torch.no_grad()
    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        projection = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.view(len(projection), -1))
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        for name, table in position_tables(self).items():
            rows = table[0, prefix_of(self, name) :]
            table.zero_()
            rows.copy_(sines_and_cosines(*rows.shape))


def visible_patches(keys: Tensor, patches: int, mask_ratio: float) -> Tensor:
    """Which of the patches are seen, (b, V) int64 in random order, for the keys (b,) of samples."""
    count = max(1, patches - round(mask_ratio * patches))
    numbers = keys[:, None] + torch.arange(patches, device=keys.device)  # (b, P)
    drawn = randomness.bits(numbers, seed=0, epoch=0, streams=(0,))[0]
    return drawn.argsort(dim=1, stable=True)[:, :count]


def sines_and_cosines(patches: int, dim: int) -> Tensor:
    """(patches, dim) float32 positions on a square grid: a quarter of the numbers each are sines and cosines of the
    column, and of the row, at frequencies 10000^(-4k/dim) (Vaswani et al. 2017, sec. 3.5, in two dimensions).

    Raises:
        ValueError: if `dim` has no quarter.
    """
    if dim % 4:
        raise ValueError(f"tokens of {dim} numbers; expected multiples of 4")
    side = round(patches**0.5)
    frequencies = 10000.0 ** (-4 * torch.arange(dim // 4, dtype=torch.float64) / dim)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, dim / 4)
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, dim / 2)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([columns, rows], 2).reshape(patches, dim).float()


def build_mae(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    drop_rate: float,
    drop_path: float,
    options: Mapping[str, Any],
    weights: str | None = None,
) -> MaskedAutoencoder:
    """The autoencoder around timm's network `name`; `options` are timm's, and those that begin with `decoder_`.

    Raises:
        UserError: if it is no plain vision transformer, or does not take these options or sizes.
    """
    from timm.models import is_model_in_modules

    if not is_model_in_modules(name, TRANSFORMERS):
        raise UserError(
            f"model.name: mae/{name}: patches cannot be masked in it; expected a vision transformer of timm with a "
            "position table (mae/vit_..., mae/deit_...)"
        )
    own = {key: value for key, value in options.items() if key.startswith("decoder_")}
    encoder: Any = build_timm(
        name,
        num_classes=0,
        in_channels=in_channels,
        image_size=image_size,
        options={"img_size": image_size, **{key: options[key] for key in options.keys() - own.keys()}},
        weights=weights,
        drop_rate=drop_rate,
        drop_path=drop_path,
    )
    if image_size % (side := encoder.patch_embed.patch_size[0]):
        raise UserError(
            f"data.image_size: {image_size} is no multiple of mae/{name}'s patch of {side} pixels"
        )
    try:
        return MaskedAutoencoder(encoder, num_classes=num_classes, channels=in_channels, **own)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"model.options: mae/{name} does not take {', '.join(options)}: {error}") from error


def _along(index: Tensor, tokens: Tensor) -> Tensor:
    """(b, V) -> (b, V, C), to gather or scatter tokens with."""
    return index.unsqueeze(2).expand(-1, -1, tokens.shape[2])
