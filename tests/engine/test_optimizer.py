"""Who is decayed, and at which rate: as timm's own factory has it, and whatever a model exempts is spared."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from engine_runs import VIT, tiny
from timm.optim import create_optimizer_v2
from torch import nn

from raytrain_speedup.engine.optimizer import build_optimizer, set_learning_rate
from raytrain_speedup.models.cswin import CSWin
from raytrain_speedup.settings import UserError

SWIN = {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (2, 2), "embed_dim": 8}
SMALL: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2},
    "swin_tiny_patch4_window7_224": SWIN,
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "resnet10t": {},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2},
}
EXEMPT = {
    "xcit_nano_12_p16_224": {"cls_token", "pos_embed.token_projection.weight"},  # by the pattern pos_embed.*
    "deit_tiny_patch16_224": {"cls_token", "pos_embed"},
    "swin_tiny_patch4_window7_224": {
        f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in (0, 1)
    },
}
"""What is no vector and yet not decayed."""


def terms(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Weight decay and scale of the learning rate of every parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("layer_decay", [None, 0.9])
@pytest.mark.parametrize("name", SMALL)
def test_decay_is_that_of_timms_factory(name: str, layer_decay: float | None):
    model = timm.create_model(name, num_classes=5, **SMALL[name])
    train = tiny(optimizer="adamw", lr=0.004, weight_decay=0.05, layer_decay=layer_decay).train
    expected = create_optimizer_v2(model, opt="adamw", lr=0.004, weight_decay=0.05, layer_decay=layer_decay)
    found = terms(model, build_optimizer(model, train))
    assert found == terms(model, expected)
    assert found.keys() == dict(model.named_parameters()).keys()
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    spared = {key for key, (decay, _) in found.items() if decay == 0 and shapes[key] > 1}
    assert {key for key in spared if not key.endswith(".bias")} == EXEMPT.get(name, set())


def test_a_model_that_exempts_nothing():
    model = CSWin(16, (1, 1, 1, 1), (2, 2, 4, 4), num_classes=5)
    for layer_decay in (None, 0.9):
        train = tiny(optimizer="adamw", weight_decay=0.05, layer_decay=layer_decay).train
        found = terms(model, build_optimizer(model, train))
        assert all(
            found[name][0] == (0.05 if parameter.ndim > 1 else 0.0)
            for name, parameter in model.named_parameters()
        )
        assert (len({scale for _, scale in found.values()}) > 4) == (layer_decay is not None)


def test_layers_without_an_order_have_no_layer_decay():
    with pytest.raises(UserError, match=r"train\.layer_decay: 0\.9 is not allowed for Sequential"):
        build_optimizer(nn.Sequential(nn.Linear(2, 2)), tiny(layer_decay=0.9).train)


def test_every_optimizer_spares_vectors_and_takes_the_rate():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for name in ("sgd", "adamw", "lamb", "lars"):
        optimizer = build_optimizer(model, tiny(optimizer=name, weight_decay=0.1).train)
        set_learning_rate(optimizer, 0.125)
        assert {name: decay for name, (decay, _) in terms(model, optimizer).items()} == {
            "0.weight": 0.1,
            **dict.fromkeys(("0.bias", "1.weight", "1.bias"), 0.0),
        }
        assert {group["lr"] for group in optimizer.param_groups} == {0.125}


def test_the_rate_of_a_lower_layer_is_scaled():
    model = timm.create_model("deit_tiny_patch16_224", num_classes=5, **SMALL["deit_tiny_patch16_224"])
    optimizer = build_optimizer(model, tiny(VIT, layer_decay=0.5).train)
    set_learning_rate(optimizer, 0.8)
    rates = {
        name: group["lr"]
        for group in optimizer.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert rates["head.weight"] == 0.8
    assert rates["blocks.1.mlp.fc1.weight"] == 0.4 and rates["blocks.0.mlp.fc1.weight"] == 0.2
    assert rates["patch_embed.proj.weight"] == 0.1
