"""Networks by name: parameter counts as published, shapes, weights from files, and what users get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raytrain_speedup.models import NETWORKS, ModelSettings, build_model, model_names
from raytrain_speedup.settings import UserError

PUBLISHED = {
    "resnet8": 78_042,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "wrn16_1": 175_066,
    "wrn16_2": 691_674,
    "wrn40_1": 563_930,
    "wrn40_2": 2_243_546,
    "vgg11": 9_231_114,
    "airbench": 1_972_792,
}
"""Parameters for CIFAR-10. Zagoruyko and Komodakis (table 4) give WRN-40-1 0.6M and WRN-40-2 2.2M, and
Jordan (arXiv 2404.00498) airbench94 1.97M."""


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(
    name: str, *, num_classes: int = 10, in_channels: int = 3, size: int = 32, **more: Any
) -> nn.Module:
    settings = ModelSettings(name=name, **more)
    return build_model(settings, num_classes=num_classes, in_channels=in_channels, image_size=size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    assert count(build(name)) == PUBLISHED[name]


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    "name", ["resnet8", "wrn16_1", "vgg11", "torchvision/squeezenet1_1", "timm/resnet10t"]
)
def test_logits(name: str, in_channels: int) -> None:
    model = build(name, num_classes=7, in_channels=in_channels, size=32)
    logits = model(torch.randn(2, in_channels, 32, 32))
    assert model.training and logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


def test_wrn_shortcut_takes_the_activated_input() -> None:
    """A block that changes shape activates before the shortcut, one that doesn't adds its raw input."""
    model = build("wrn16_1").eval()
    changing, keeping = model.stages[1][0], model.stages[1][1]
    for block in (changing, keeping):
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    activated = torch.relu(changing.bn1(x))
    torch.testing.assert_close(changing(x), changing.shortcut(activated))
    y = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(keeping(y), y)


def test_bn_momentum() -> None:
    norms = [m for m in build("resnet8", bn_momentum=0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {norm.momentum for norm in norms} == {0.25}


@pytest.mark.parametrize("name", ["resnet18", "wrn16_2", "vgg11"])
def test_convolutions_start_with_the_std_of_their_fan_out(name: str) -> None:
    torch.manual_seed(0)
    weights = [module.weight for module in build(name).modules() if isinstance(module, nn.Conv2d)]
    weight = max(weights, key=torch.numel)
    fan_out = weight.shape[0] * weight[0, 0].numel()
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_a_seed_gives_the_same_start() -> None:
    """The trial forward pass draws nothing and leaves no batch statistics behind."""
    torch.manual_seed(3)
    model = build("resnet8")
    after = torch.get_rng_state()
    torch.manual_seed(3)
    expected = NETWORKS["resnet8"](num_classes=10, in_channels=3)
    assert torch.equal(after, torch.get_rng_state())
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_drop_rates_reach_the_network() -> None:
    assert build("wrn16_1", drop_rate=0.3).stages[0][0].dropout.p == 0.3
    tiny = {"depths": (1, 1, 1, 2), "dims": (8, 8, 8, 8)}
    model = build("timm/convnext_tiny", drop_path=0.2, options=tiny)
    assert model.stages[3].blocks[1].drop_path.drop_prob == pytest.approx(0.2)


def test_names_are_complete() -> None:
    names = set(model_names())
    assert {"resnet8", "cswin_t", "torchvision/resnet50", "timm/deit_small_patch16_224"} <= names


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "resnet19"}, "did you mean resnet18"),
        ({"name": "timm/resnet5O"}, "timm/resnet50"),
        ({"name": "torchvision/resnet51"}, "torchvision/resnet50"),
        ({"name": "keras/resnet50"}, "no model 'keras/resnet50'"),
        ({"name": "resnet8", "drop_path": 0.1}, "resnet8 does not take drop_path"),
        ({"name": "cswin_t", "drop_rate": 0.1, "size": 64}, "cswin_t does not take drop_rate"),
        ({"name": "timm/resnet18", "weights": "no_such_tag"}, "no_such_tag"),
        ({"name": "resnet8", "options": {"depth": 3}}, "model.options: resnet8 has none"),
        ({"name": "resnet8", "weights": "IMAGENET1K_V1"}, "model.pretrained takes a file"),
        ({"name": "torchvision/resnet18", "weights": "V9"}, "IMAGENET1K_V1"),
        ({"name": "torchvision/resnet18", "options": {"colour": 3}}, "colour"),
        ({"name": "torchvision/resnet18", "drop_path": 0.1}, "stochastic_depth_prob"),
        ({"name": "timm/resnet18", "options": {"colour": 3}}, "colour"),
        ({"name": "torchvision/inception_v3"}, "takes no images of 3 x 32 x 32"),
        ({"name": "cswin_t", "size": 40}, "takes no images of 3 x 40 x 40"),
        ({"name": "timm/resnet18", "options": {"features_only": True}}, "it gives a list, not a tensor of"),
    ],
)
def test_mistakes_are_reported(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match="model") as caught:
        build(**given)
    assert expected in str(caught.value)


def test_two_starts_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="not from both"):
        ModelSettings(name="resnet8", pretrained=Path("weights.pt"), weights="a1_in1k")


def test_torchvision_weights_need_three_channels() -> None:
    with pytest.raises(UserError, match="take 3 channels, and the data have 1"):
        build("torchvision/resnet18", weights="IMAGENET1K_V1", in_channels=1)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_pretrained_file(tmp_path: Path, wrap: Any) -> None:
    source = build("resnet8")
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pt")
    model = build("resnet8", pretrained=tmp_path / "weights.pt")
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_pretrained_for_other_classes_keeps_all_but_the_classifier(tmp_path: Path) -> None:
    """ImageNet-22K to 1K: the classifier starts afresh."""
    source = build("resnet8", num_classes=100)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = build("resnet8", pretrained=tmp_path / "weights.pt")
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert model.fc.weight.shape == (10, 64)


def test_pretrained_mistakes_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.pt"):
        build("resnet8", pretrained=tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match=r"cannot read .*text\.pt"):
        build("resnet8", pretrained=tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list; expected a state dict"):
        build("resnet8", pretrained=tmp_path / "list.pt")
    torch.save(build("wrn16_1").state_dict(), tmp_path / "wrn.pt")
    with pytest.raises(UserError, match=r"wrn\.pt does not fit ResNet: bn1.weight is missing"):
        build("resnet8", pretrained=tmp_path / "wrn.pt")
    torch.save(build("resnet8", in_channels=1).state_dict(), tmp_path / "grey.pt")
    with pytest.raises(UserError, match=r"conv1.weight is \(16, 1, 3, 3\), not \(16, 3, 3, 3\)"):
        build("resnet8", pretrained=tmp_path / "grey.pt")
