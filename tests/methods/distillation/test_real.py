"""The control with data: real training images, each once before any twice."""

from __future__ import annotations

import pytest
import torch
from distillation_nets import TRAINING_IMAGES, build
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup.methods.distillation.base import RealImages
from raytrain_speedup.methods.distillation.controls import positions
from raytrain_speedup.settings import UserError

quick = settings(max_examples=25, deadline=None)  # a busy machine is no failure


@quick
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))
def test_the_batches_of_all_calls_show_each_image_once_before_any_twice(
    count: int, batch: int, seed: int
) -> None:
    passes = 3
    calls = -(-passes * count // batch)
    shown = torch.cat([positions(call * batch, batch, count, seed) for call in range(calls)])
    for number in range(passes):
        assert shown[number * count : (number + 1) * count].sort().values.tolist() == list(range(count))


def test_every_order_is_another() -> None:
    orders = [positions(start, 100, 100, seed) for start, seed in ((0, 0), (100, 0), (0, 1))]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], torch.arange(100))


def test_the_images_are_the_training_images_pixel_by_pixel() -> None:
    synthesizer = build("real", batch_size=10)
    shown = torch.cat([synthesizer.synthesize(call).images for call in range(2)])
    assert torch.equal(shown[shown[:, 0, 0, 0].argsort()], TRAINING_IMAGES)


def test_what_cannot_be_read_is_left_out_of_its_call() -> None:
    def read(positions: torch.Tensor) -> torch.Tensor:
        return TRAINING_IMAGES[positions[positions != 3]]

    synthesizer = build("real", batch_size=10, real=RealImages(20, read))
    sizes = [len(synthesizer.synthesize(call).images) for call in range(2)]
    assert sorted(sizes) == [9, 10]


@pytest.mark.parametrize("real", [None, RealImages(0, lambda positions: TRAINING_IMAGES[positions])])
def test_without_training_images_it_is_refused(real: RealImages | None) -> None:
    with pytest.raises(UserError, match="distillation.method: 'real' needs training images"):
        build("real", real=real)
