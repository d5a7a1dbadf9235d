"""How far generated images are from real ones: the Fréchet distance between Gaussians fitted to their features.

FID (Heusel et al., NeurIPS 2017, https://arxiv.org/abs/1706.08500, eq. 6) takes features of an Inception network
that was trained on ImageNet, to be had by a download. Here they come from a convolutional network that nobody
trained: embeddings by random weights find the faults of generated images too, and are less partial where data are
not ImageNet's (Naeem et al., ICML 2020, https://arxiv.org/abs/2002.09797). They are the same in every run, so the
distance ranks runs on one data set; it cannot be compared with published FIDs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 64)
"""Channels of the random network's convolutions."""

SMALLEST = 2
"""Pixels at the side of a map that is still halved."""


class RandomFeatures(nn.Module):
    """A convolutional network with random weights, always the same ones.

    Convolutions of 3 x 3 with ReLU and He's initialisation (arXiv 1502.01852), between them means over 2 x 2
    pixels; the features are the means of every layer's channels over the image.

    Args:
        channels: of an image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.num_features = sum(WIDTHS)
        for layer, (before, width) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
            scale = (2 / (9 * before)) ** 0.5
            self.register_buffer(f"filters{layer}", scale * torch.randn(width, before, 3, 3, generator=rng))

    def forward(self, images: Tensor) -> Tensor:
        """(b, d) float32 from images (b, C, H, W) in [-1, 1]."""
        found, maps = [], images.float()
        for layer in range(len(WIDTHS)):
            maps = F.conv2d(maps, self.get_buffer(f"filters{layer}"), padding=1).relu()
            found.append(maps.mean((2, 3)))
            maps = F.avg_pool2d(maps, 2) if min(maps.shape[2:]) >= SMALLEST else maps
        return torch.cat(found, 1)


def feature_moments(features: Tensor) -> Tensor:
    """What the distance needs to know of features (n, d): (1 + d, 1 + d) float64, Z^T Z for Z = [1, features]. It
    can be summed over batches and workers."""
    ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    z = torch.cat([ones, features.double()], 1)
    return z.T @ z


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sums of `feature_moments`, with unbiased covariances; NaN
    where one has fewer than two samples."""
    (mean1, cov1), (mean2, cov2) = _gaussian(one), _gaussian(other)
    if not (cov1.isfinite().all() and cov2.isfinite().all()):
        return float("nan")
    # eigenvalues of C1 C2 are those of a positive semidefinite matrix, but for rounding
    roots = torch.linalg.eigvals(cov1 @ cov2).real.clamp_min(0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * roots)


def _gaussian(summed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d)."""
    count, total = summed[0, 0], summed[0, 1:]
    mean = total / count
    return mean, (summed[1:, 1:] - count * mean.outer(mean)) / (count - 1)
