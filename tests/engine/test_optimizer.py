"""Who is decayed, and at which rate: as timm's own factory has it, and whatever a model exempts is spared."""

from __future__ import annotations

from typing import Any

import numpy as np
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
    for name in ("sgd", "adamw", "lamb", "lars", "muon"):
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


def orthogonal_factor(x: np.ndarray) -> np.ndarray:
    """The nearest (semi-)orthogonal matrix, which Newton-Schulz steps approach."""
    left, _, right = np.linalg.svd(x, full_matrices=False)
    return left @ right


def test_muon_against_a_loop_by_hand():
    """Filters take orthogonal steps as large as AdamW's, decayed beside; what else there is AdamW's own. timm
    makes them orthogonal in bfloat16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 3)).double()
    rate, decay, momentum = 0.03, 0.2, 0.6
    train = tiny(optimizer="muon", lr=rate, weight_decay=decay, momentum=momentum, nesterov=True).train
    optimizer = build_optimizer(model, train)
    expected = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    heaps = dict.fromkeys(expected, 0.0)
    rng = np.random.default_rng(0)
    for step in range(3):
        gradients = {name: rng.standard_normal(value.shape) for name, value in expected.items()}
        for name, value in model.named_parameters():
            value.grad = torch.from_numpy(gradients[name])
        optimizer.step()
        for name in ("0.weight", "2.weight"):
            flat = gradients[name].reshape(len(gradients[name]), -1)
            heaps[name] = momentum * heaps[name] + (1 - momentum) * flat
            ahead = momentum * heaps[name] + (1 - momentum) * flat
            scale = 0.2 * max(flat.shape) ** 0.5
            update = scale * orthogonal_factor(ahead).reshape(expected[name].shape)
            expected[name] = expected[name] * (1 - rate * decay) - rate * update
            found = dict(model.named_parameters())[name].detach().numpy()
            np.testing.assert_allclose(
                found, expected[name], atol=0.03 * rate, err_msg=f"{name}, step {step}"
            )
    beside = {name for name, group in by_group(model, optimizer).items() if group["use_fallback"]}
    assert beside == {"0.bias", "2.bias", "3.weight", "3.bias"}


def test_muon_leaves_tables_and_the_classifier_to_adamw():
    model = timm.create_model("deit_tiny_patch16_224", num_classes=5, **SMALL["deit_tiny_patch16_224"])
    groups = by_group(model, build_optimizer(model, tiny(VIT, optimizer="muon").train))
    matrices = {name for name, group in groups.items() if not group["use_fallback"]}
    assert matrices == {"patch_embed.proj.weight"} | {
        f"blocks.{block}.{part}.weight"
        for block in (0, 1)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    table = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    groups = by_group(table, build_optimizer(table, tiny(optimizer="muon").train))
    assert [name for name, group in groups.items() if not group["use_fallback"]] == ["1.weight"]
    with pytest.raises(UserError, match=r"train\.layer_decay: 0\.5 is not allowed with muon"):
        build_optimizer(model, tiny(VIT, optimizer="muon", layer_decay=0.5).train)


def by_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The group of every parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
