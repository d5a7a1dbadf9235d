"""The generators: shapes, start, and refusals."""

from __future__ import annotations

import pytest
import torch

from raytrain_speedup.methods.distillation.generator import (
    Architecture,
    DeepGenerator,
    build_generator,
    initialise,
)
from raytrain_speedup.randomness import torch_generator
from raytrain_speedup.settings import UserError


@pytest.mark.parametrize(
    ("architecture", "shape", "latent_shape"),
    [
        ("small", (1, 8, 8), (16,)),
        ("small", (3, 32, 32), (16,)),
        ("small", (3, 12, 20), (16,)),
        ("deep", (3, 32, 48), (16, 2, 3)),
    ],
)
def test_codes_become_images(
    architecture: Architecture, shape: tuple[int, int, int], latent_shape: tuple[int, ...]
) -> None:
    generator = build_generator(architecture, shape, width=8, latent=16, rng=torch_generator("cpu", 0))
    z = generator.sample_latent(4, torch_generator("cpu", 1))
    images = generator(z)
    assert z.shape == (4, *latent_shape)
    assert images.shape == (4, *shape)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01


def test_imagenets_latent_is_a_map_of_14() -> None:
    with torch.device("meta"):
        generator = DeepGenerator((3, 224, 224))
        assert generator.latent_shape == (256, 14, 14)
        assert generator(torch.empty(2, 256, 14, 14)).shape == (2, 3, 224, 224)


def test_the_start_is_the_generators_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        build_generator("small", (1, 8, 8), width=4, latent=8, rng=torch_generator("cpu", seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.first.weight, other.first.weight)


def test_the_start_is_torchs_own_scheme() -> None:
    layer = torch.nn.Conv2d(16, 32, 3)
    initialise(layer, torch_generator("cpu", 0))
    bound = 1 / (16 * 9) ** 0.5
    assert bound * 0.99 < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize(("architecture", "side", "multiple"), [("small", 30, 4), ("deep", 40, 16)])
def test_sides_it_cannot_reach_are_refused(architecture: Architecture, side: int, multiple: int) -> None:
    with pytest.raises(UserError, match=f"image_size: {side} x {side}.* multiples of {multiple}"):
        build_generator(architecture, (3, side, side), width=8, latent=8, rng=torch_generator("cpu", 0))
