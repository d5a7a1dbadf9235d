"""Augmentation as matrix products, against padding, slicing and flipping."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from raytrain_speedup.methods.distillation.augment import Augment, augment

quick = settings(max_examples=25, deadline=None)  # a busy machine is no failure


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_crop(image: Tensor, crop: int, flip: bool) -> list[Tensor]:
    """All that a zero-padded random crop and a flip can make of one image (C, H, W)."""
    height, width = image.shape[1:]
    padded = F.pad(image, [crop] * 4)
    offsets = range(2 * crop + 1)
    crops = [padded[:, top : top + height, left : left + width] for top in offsets for left in offsets]
    return crops + [crop.flip(2) for crop in crops] * flip


@quick
@given(st.integers(0, 2**31), st.integers(0, 3), st.booleans(), st.sampled_from([(5, 5), (4, 6)]))
def test_crops_and_flips_are_exact(seed: int, crop: int, flip: bool, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (6, 2, *size), generator=rng(seed)).float()
    out = augment(images, Augment(crop=crop, flip=flip), rng(seed))
    for image, varied in zip(images, out, strict=True):
        assert any(torch.equal(varied, candidate) for candidate in every_crop(image, crop, flip))


def test_every_shift_and_both_orientations_occur_about_equally() -> None:
    image = torch.zeros(1, 9, 9)
    image[0, 4, 4] = 1
    image[0, 4, 3] = 0.5
    out = augment(image.expand(4500, 1, 9, 9), Augment(crop=1, flip=True), rng(0))
    counts = torch.stack(
        [(out == candidate).all((1, 2, 3)).sum() for candidate in every_crop(image, 1, True)]
    )
    assert counts.sum() == 4500
    assert counts.min() > 180 and counts.max() < 330  # 250 expected, 15.5 standard deviation


@quick
@given(st.integers(0, 2**31))
def test_a_zoom_keeps_to_the_values_inside_the_image(seed: int) -> None:
    images = 1 + torch.rand(4, 1, 12, 12, generator=rng(seed))
    out = augment(images, Augment(crop=0, flip=True, zoom=0.25), rng(seed))
    assert out.shape == images.shape
    assert (out >= images.amin((2, 3), keepdim=True) - 1e-5).all()
    assert (out <= images.amax((2, 3), keepdim=True) + 1e-5).all()


def test_a_zoom_magnifies_a_ramp() -> None:
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(64, 1, 16, 16)
    inner = augment(ramp, Augment(crop=0, flip=False, zoom=0.3), rng(0))[:, 0, 0, 4:12]
    slope = inner.diff(dim=1)
    torch.testing.assert_close(slope, slope[:, :1].expand_as(slope), atol=1e-4, rtol=0)
    assert slope.max() <= 1 + 1e-4 and slope.min() > 0.3 and slope.std() > 0.05


def test_nothing_asked_for_changes_nothing_and_the_draw_alone_decides() -> None:
    images = torch.rand(4, 3, 8, 8, generator=rng(0))
    assert augment(images, Augment(crop=0, flip=False), rng(1)) is images
    assert torch.equal(augment(images, Augment(), rng(1)), augment(images, Augment(), rng(1)))
    assert not torch.equal(augment(images, Augment(), rng(1)), augment(images, Augment(), rng(2)))


def test_the_gradient_goes_back_to_the_pixels_it_came_from() -> None:
    images = torch.rand(3, 2, 6, 6, dtype=torch.float64, generator=rng(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment(x, Augment(crop=2), rng(1)), images)


def test_one_kind_of_crop() -> None:
    with pytest.raises(ValidationError, match="set crop to 0"):
        Augment(crop=4, zoom=0.5)
