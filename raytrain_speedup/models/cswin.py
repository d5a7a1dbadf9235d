"""CSWin Transformer: attention in cross-shaped windows (Dong et al. 2022, https://arxiv.org/abs/2107.00652).

Half of the heads attend within horizontal stripes of the feature map, the other half within vertical ones, so
that two blocks see the whole map. Position comes from LePE, a depth-wise convolution of the values in their
stripe (section 3.3), so no parameter depends on the image size. Written from the paper: timm has no CSWin.

The stripes are 1, 2, 7 and 7 wide at 224 pixels and 1, 2, 12 and 12 at 384: the first two widths are fixed,
the third is half of its map and the fourth all of it. Read so, they follow any side that is a multiple of 32
(96 gives 1, 2, 3, 3; 160 gives 1, 2, 5, 5), and a change of size in mid-run needs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_stripes(x_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Cut maps into stripes: (b, H, W, C) to (b * H/height * W/width, height, width, C)."""
    b, h, w, c = x_BHWC.shape
    stripes = x_BHWC.view(b, h // height, height, w // width, width, c).transpose(2, 3)
    return stripes.reshape(-1, height, width, c)


def from_stripes(stripes: Tensor, h: int, w: int) -> Tensor:
    """Undo `to_stripes` for maps of h x w."""
    height, width, c = stripes.shape[1:]
    grid = stripes.view(-1, h // height, w // width, height, width, c).transpose(2, 3)
    return grid.reshape(-1, h, w, c)


class StripeAttention(nn.Module):
    """Self-attention within stripes, with LePE (equation 8): softmax(QK^T / sqrt(d)) V + DWConv(V).

    Args:
        dim: channels of this group of heads.
        num_heads: heads of the group.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv_BHWC: Tensor, height: int, width: int) -> Tensor:
        """(b, H, W, 3 * dim) to (b, H, W, dim), within stripes of height x width."""
        h, w = qkv_BHWC.shape[1:3]
        q, k, v = to_stripes(qkv_BHWC, height, width).chunk(3, dim=-1)
        lepe = self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v))
        out = out.transpose(1, 2).reshape(lepe.shape)
        return from_stripes(out + lepe, h, w)

    def _heads(self, x: Tensor) -> Tensor:
        """(n, height, width, dim) to (n, heads, height * width, dim / heads)."""
        return x.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CrossAttention(nn.Module):
    """Horizontal stripes for half of the heads, vertical ones for the other half (section 3.2).

    Args:
        dim: channels.
        num_heads: heads of both halves together.
        stripe: width of the stripes; None takes half of the map.
    """

    def __init__(self, dim: int, num_heads: int, stripe: int | None) -> None:
        super().__init__()
        self.stripe = stripe
        self.qkv = nn.Linear(dim, 3 * dim)
        self.horizontal = StripeAttention(dim // 2, num_heads // 2)
        self.vertical = StripeAttention(dim // 2, num_heads // 2)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, H, W, dim) to the same shape."""
        h, w = x.shape[1:3]
        first, second = self.qkv(x).chunk(2, dim=-1)
        rows = self.horizontal(first, self.stripe or h // 2, w)
        columns = self.vertical(second, h, self.stripe or w // 2)
        return self.proj(torch.cat([rows, columns], dim=-1))


class FullAttention(nn.Module):
    """The last stage: its stripes are as wide as the map, so all heads attend to all of it."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention = StripeAttention(dim, num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, H, W, dim) to the same shape."""
        return self.proj(self.attention(self.qkv(x), *x.shape[1:3]))


class CSWinBlock(nn.Module):
    """Pre-norm attention and MLP (equations 6 and 7)."""

    def __init__(self, dim: int, attention: nn.Module, drop_path: float) -> None:
        from torchvision.ops import StochasticDepth  # torchvision is half of this package's import time

        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """(b, H, W, dim) to the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embed(nn.Module):
    """An overlapping convolution and a norm: the patch embedding, and the step between stages."""

    def __init__(self, in_channels: int, dim: int, *, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(b, H, W, in_channels) to (b, H / stride, W / stride, dim)."""
        return self.norm(self.conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class CSWin(nn.Module):
    """CSWin Transformer.

    Linear layers start from a truncated normal of std .02 with biases 0, as in ViT and Swin;
    convolutions keep PyTorch's start.

    Args:
        dim: channels of the first stage; each later stage has twice as many.
        depths: blocks of the four stages.
        num_heads: heads of the four stages.
        num_classes: outputs.
        in_channels: channels of the images.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
    """

    stride = 32
    """Sides must be multiples of it: the last map is 1/32 of the image, and the third has two stripes."""

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        layers: list[nn.Module] = [Embed(in_channels, dim, kernel_size=7, stride=4)]
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            width = dim * 2**stage
            if stage > 0:
                layers.append(Embed(width // 2, width, kernel_size=3, stride=2))
            layers += [CSWinBlock(width, _attention(stage, width, heads), next(rates)) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, H, W) images, sides multiples of 32, to (b, num_classes) logits."""
        out = self.layers(x.permute(0, 2, 3, 1))
        return self.head(self.norm(out).mean((1, 2)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, as timm's models say it: for layer-wise learning rates."""
        return {"stem": r"^layers\.0\.", "blocks": [(r"^layers\.(\d+)\.", None), (r"^norm", (99999,))]}


def _attention(stage: int, dim: int, num_heads: int) -> nn.Module:
    if stage == 3:
        return FullAttention(dim, num_heads)
    return CrossAttention(dim, num_heads, stripe=(1, 2, None)[stage])
