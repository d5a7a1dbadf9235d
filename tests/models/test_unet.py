"""diffusers' U-Net by name: it is diffusers' own, takes the sizes of a curriculum, and says what it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from raytrain_speedup.models import ModelSettings, build_model, check_sizes, stride_of
from raytrain_speedup.settings import UserError

OPTIONS = {
    **{"block_out_channels": [8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False},
    **{"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3},
}


def settings(**changed: Any) -> ModelSettings:
    return ModelSettings(**{"name": "diffusers/UNet2DModel", "options": OPTIONS} | changed)


def build(image_size: int = 16, **changed: Any) -> torch.nn.Module:
    return build_model(settings(**changed), num_classes=7, in_channels=2, image_size=image_size, dense=None)


def test_its_weights_are_diffusers() -> None:
    model = build(drop_rate=0.25).eval()
    theirs = UNet2DModel(sample_size=16, in_channels=2, out_channels=2, **OPTIONS).eval()
    theirs.load_state_dict(model.state_dict())
    images, timesteps = torch.randn(3, 2, 16, 16), torch.tensor([0, 7, 999])
    assert torch.equal(model(images, timesteps).sample, theirs(images, timesteps).sample)
    rates = {layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)}
    assert rates == {0.25}


def test_it_takes_other_sizes_in_steps_of_its_scale() -> None:
    assert stride_of(settings(), image_size=16, in_channels=2) == 4
    check_sizes(settings(), [8, 12], num_classes=7, in_channels=2, image_size=16, dense=None)
    with pytest.raises(UserError, match=r"from 16 to 10: it takes multiples of 4"):
        check_sizes(settings(), [10], num_classes=7, in_channels=2, image_size=16, dense=None)


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"name": "diffusers/UNet3D"},
            r"model\.name: there is no model 'diffusers/UNet3D'; expected diffusers/UNet2D",
        ),
        ({"options": {"depth": 3}}, r"model\.options: diffusers/UNet2DModel does not take depth: "),
        (
            {"options": OPTIONS | {"norm_num_groups": 3}},
            r"model\.options: .* num_channels .8. must be divisible by num_groups",
        ),
        ({"drop_path": 0.1}, r"model\.drop_path: .*expected 0, got 0\.1"),
        ({"weights": "DEFAULT"}, r"model\.weights: none are published"),
        ({"image_size": 18}, r"data\.image_size: 18 is no multiple of 4"),
    ],
)
def test_what_it_does_not_take_is_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build(**changed)
    assert "\n" not in str(raised.value)
