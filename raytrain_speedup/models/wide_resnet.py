"""Wide residual networks (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146): WRN-depth-width.

Pre-activation blocks: batch norm and ReLU come before each convolution. Where the shape changes, the 1 x 1
shortcut takes the activated input, as in the authors' code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from raytrain_speedup.models.layers import conv1x1, conv3x3, init_weights


class WideBlock(nn.Module):
    """BN-ReLU-conv, BN-ReLU-dropout-conv, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = conv3x3(channels, channels)
        changes_shape = stride != 1 or in_channels != channels
        self.shortcut = conv1x1(in_channels, channels, stride) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv1(active)
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: three stages of 16, 32 and 64 times `width` channels.

    Args:
        depth: convolutions on the main path, 6n + 4.
        width: the widening factor k.
        num_classes: outputs.
        in_channels: channels of the images.
        drop_rate: dropout between the two convolutions of a block.
    """

    def __init__(
        self, depth: int, width: int, *, num_classes: int, in_channels: int = 3, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        blocks_per_stage = (depth - 4) // 6
        channels = 16
        self.conv1 = conv3x3(in_channels, channels)
        stages = []
        for out_channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            blocks = []
            for position in range(blocks_per_stage):
                blocks.append(WideBlock(channels, out_channels, stride if position == 0 else 1, drop_rate))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, H, W) images to (b, num_classes) logits."""
        out = self.stages(self.conv1(x))
        out = F.relu(self.bn(out))
        return self.fc(out.mean((2, 3)))
