"""A small network that learns CIFAR-10 in seconds: the baseline that leaves nothing to gain by being slow.

After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), section 3: a frozen first
layer of 2 x 2 filters that whitens the patches of the training images, three blocks of two convolutions with
GELU, batch normalisation without scales, filters that begin as the identity, logits scaled down. Its recipe is
`cifar10-airbench`. Where ours differs: the bias of the first layer is trained to the end (there for three
epochs), and the last pooling is over the whole map, so that smaller images of a curriculum fit as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 2
"""Side of a patch that the first layer whitens, in pixels."""

MOMENTUM = 0.4
"""Fraction of a batch in the running statistics: a run takes only hundreds of steps."""

EPSILON = 5e-4
"""Added to the patches' variances, which would divide noise by next to nothing where two pixels are alike."""


class Airbench(nn.Module):
    """Whitening, three blocks, one linear layer.

    Args:
        widths: channels of the blocks; (64, 256, 256) in the paper.
        num_classes: outputs.
        in_channels: channels of the images.
        logit_scale: factor of the logits.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        *,
        num_classes: int,
        in_channels: int = 3,
        logit_scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        patch = in_channels * PATCH**2
        self.whiten = nn.Conv2d(in_channels, 2 * patch, PATCH)
        self.whiten.weight.requires_grad_(False)
        channels, blocks = 2 * patch, []
        for width in widths:
            blocks.append(Block(channels, width))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes, bias=False)
        self.logit_scale = logit_scale
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d):  # the first channels pass as they are
                nn.init.dirac_(module.weight[: module.in_channels].detach())

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Give the first layer the eigenvectors of the covariance of patches, divided by their standard deviations,
        and each with the other sign as well, for what follows keeps the positive part (section 3.2).

        Args:
            images: (k, C, H, W) as the network gets them, of the training set.
        """
        windows = F.unfold(images.double(), PATCH)  # (k, C * PATCH ** 2, positions)
        patches = windows.transpose(1, 2).flatten(0, 1)  # (n, C * PATCH ** 2)
        variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        scaled = (vectors / (variances + EPSILON).sqrt()).T.flip(
            0
        )  # (C * PATCH ** 2, same), the largest first
        filters = scaled.view(-1, *self.whiten.weight.shape[1:])
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whiten.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, H, W) images to (b, num_classes) logits."""
        out = self.blocks(F.gelu(self.whiten(x)))
        return self.head(out.amax((2, 3))) * self.logit_scale


class Block(nn.Module):
    """Convolution, pooling that halves the side, convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.gelu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.bn2(self.conv2(out)))


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation that learns a bias and no scale."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
