"""How far generated images are from real ones: the Fréchet distance between Gaussians fitted to their features
(FID: Heusel et al., NeurIPS 2017, https://arxiv.org/abs/1706.08500, eq. 6). Whose features: `features.py`."""

from __future__ import annotations

import torch
from torch import Tensor


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
