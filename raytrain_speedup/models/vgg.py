"""VGG-11 with batch norm for small images (Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556).

The convolutions are configuration A of the paper. The three large linear layers are one, as usual on CIFAR,
and a global mean stands for the fifth max-pool, so that any side from 16 pixels works.
"""

from __future__ import annotations

from torch import Tensor, nn

from raytrain_speedup.models.layers import init_weights

CONFIG_A = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Channels of the convolutions of each stage; a 2 x 2 max-pool stands between stages."""


class VGG11(nn.Module):
    """Eight 3 x 3 convolutions with batch norm, and a linear layer.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for number, stage in enumerate(CONFIG_A):
            if number > 0:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, H, W) images to (b, num_classes) logits."""
        return self.fc(self.features(x).mean((2, 3)))
