"""Images that are synthesised small are those of a small run, enlarged as PIL does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from distillation_nets import SMALL_METHODS, Segmenter, build, classifier
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import SYNTHESIZERS
from raytrain_speedup.methods.distillation.evaluation_set import evaluation_images
from raytrain_speedup.settings import UserError


def by_pil(images: Tensor, height: int, width: int) -> np.ndarray:
    """(n, 1, height, width) from uint8 (n, 1, h, w)."""
    resized = [
        Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        for image in images[:, 0].numpy()
    ]
    return np.stack(resized)[:, None]


@pytest.mark.parametrize("method", [name for name in SYNTHESIZERS if name != "real"])
def test_they_are_those_of_a_small_run_enlarged(method: str) -> None:
    """In the second call too, of a run that was resumed between them."""
    small, large = build(method), build(method, image_size=(16, 16), synthesis_scale=0.5)
    for call in range(2):
        expected, found = small.synthesize(call), large.synthesize(call)
        assert found.images.shape == (len(expected.images), 1, 16, 16) and found.images.dtype == torch.uint8
        difference = found.images.numpy().astype(int) - by_pil(expected.images, 16, 16)
        assert np.abs(difference).max() <= 1  # PIL rounds between the two directions
        assert {name: float(value) for name, value in found.metrics.items()} == {
            name: float(value) for name, value in expected.metrics.items()
        }
        state = large.state_dict()
        large = build(method, image_size=(16, 16), synthesis_scale=0.5)
        large.load_state_dict(state)


def test_height_and_width_are_scaled_alike() -> None:
    nets = Segmenter(), Segmenter(2, seed=1)
    made = build("fastdfkd", *nets, image_size=(24, 16), synthesis_scale=0.5).synthesize(0)
    alone = build("fastdfkd", *nets, image_size=(12, 8)).synthesize(0)
    difference = made.images.numpy().astype(int) - by_pil(alone.images, 24, 16)
    assert made.images.shape[1:] == (1, 24, 16) and np.abs(difference).max() <= 1


def test_a_student_is_judged_on_images_of_the_runs_size() -> None:
    scaled, plain = (build("fastdfkd", image_size=16, synthesis_scale=scale) for scale in (0.5, 1.0))
    assert torch.equal(evaluation_images(scaled.problem), evaluation_images(plain.problem))


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"distillation.synthesis_scale: 0.3 of 8 x 8 pixels is 2.4 x 2.4; expected"
    ):
        build("fastdfkd", synthesis_scale=0.3)
    with pytest.raises(UserError, match=r"teacher: takes no images of 1 x 4 x 4"):
        build(
            "fastdfkd", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), classifier(), synthesis_scale=0.5, bn=0
        )
    with pytest.raises(ValidationError, match="real images are not"):
        SYNTHESIZERS["real"](**SMALL_METHODS["real"] | {"synthesis_scale": 0.5})
