"""The airbench network: its first layer whitens patches, and its filters begin as the identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raytrain_speedup.models.airbench import EPSILON, Airbench


def smooth_images(count: int = 64) -> torch.Tensor:
    """(count, 3, 10, 10): neighbours and channels alike, as in photographs, and with another mean."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 3, 12, 12)).cumsum(2).cumsum(3)[:, :, 2:, 2:] / 5
    return torch.from_numpy(images + images[:, :1] / 2 + 0.3).float()


def patches(images: np.ndarray) -> np.ndarray:
    """(n, 12): every 2 x 2 patch, channel by channel."""
    height, width = images.shape[2:]
    return np.stack(
        [
            image[:, y : y + 2, x : x + 2].ravel()
            for image in images
            for y in range(height - 1)
            for x in range(width - 1)
        ]
    )


def test_the_first_layer_whitens_patches() -> None:
    model, images = Airbench(num_classes=10), smooth_images()
    model.init_from_images(images)
    found = patches(images.double().numpy())
    variances, _ = np.linalg.eigh(found.T @ found / len(found))
    out = model.whiten(images).detach().double().transpose(0, 1).flatten(1).numpy()  # (24, n)
    assert np.allclose(out[:12], -out[12:], atol=1e-4)
    second = out[:12] @ out[:12].T / out.shape[1]
    assert np.allclose(second, np.diag(variances[::-1] / (variances[::-1] + EPSILON)), atol=1e-3)
    assert not model.whiten.weight.requires_grad and model.whiten.bias is not None
    assert model.whiten.bias.requires_grad and not model.whiten.bias.any()


def test_filters_begin_as_the_identity_and_norms_have_no_scale() -> None:
    model = Airbench((8, 16, 16), num_classes=10)
    for convolution in (m for m in model.blocks.modules() if isinstance(m, nn.Conv2d)):
        x = torch.randn(2, convolution.in_channels, 5, 5)
        passed = min(convolution.in_channels, convolution.out_channels)
        assert torch.allclose(convolution(x)[:, :passed], x[:, :passed], atol=1e-6)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    assert all(not n.weight.requires_grad and n.bias.requires_grad and n.momentum == 0.4 for n in norms)


@pytest.mark.parametrize("size", [16, 24, 32])
def test_logits_are_a_ninth_of_the_layers(size: int) -> None:
    model = Airbench((8, 16, 16), num_classes=10).eval()
    x = torch.randn(2, 3, size, size)
    kept: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda *call: kept.append(call[2]))
    assert torch.allclose(model(x) * 9, kept[0], atol=1e-6)
