"""torchvision's networks for segmentation behind the engine's interface: images in, a map of logits out."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision import models

from raytrain_speedup.models import ModelSettings, build_model, check_sizes, model_names
from raytrain_speedup.models.dense import PooledBatchNorm
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.segmentation import SegmentationSettings

SMALL = ["torchvision/lraspp_mobilenet_v3_large", "torchvision/deeplabv3_mobilenet_v3_large"]


def build(name: str, *, dense: bool = True, classes: int = 5, channels: int = 3, size: int = 32, **more):
    settings = ModelSettings(name=name, **more)
    return build_model(settings, num_classes=classes, in_channels=channels, image_size=size, dense=dense)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_a_map_of_logits(name: str, channels: int):
    model = build(name, channels=channels)
    assert name in model_names() and model.training
    for batch in (2, 1):  # a worker may get a single image
        logits = model(torch.randn(batch, channels, 32, 32))
        assert logits.shape == (batch, 5, 32, 32) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_torchvisions(name: str):
    """Its state dict goes there and back, and the logits are those of the dict's entry `out`."""
    torch.manual_seed(0)
    model = build(name).eval()
    plain = models.get_model(
        name.partition("/")[2], weights=None, weights_backbone=None, num_classes=5
    ).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), plain(x)["out"])
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    stream = io.BytesIO()
    torch.save(model, stream)  # as a worker process gets it
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), model(x))


def test_pooled_features_of_one_image_get_the_running_statistics():
    norm, reference = PooledBatchNorm(3), torch.nn.BatchNorm2d(3)
    norm.running_mean.fill_(2.0)
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), (x - 2) / (1 + norm.eps) ** 0.5)
    several = torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(norm(several), reference(several))


def test_a_classifier_is_no_network_for_segmentation_nor_the_other_way_round():
    with pytest.raises(
        UserError, match=r"resnet8 .* shape \(5,\), not 5 logits for each pixel, as torchvision's"
    ):
        build("resnet8")
    with pytest.raises(UserError, match=r"shape \(5, 32, 32\), not 5 logits for an image"):
        build(SMALL[0], dense=False)


def test_every_size_of_a_curriculum():
    check_sizes(ModelSettings(name=SMALL[1]), (32, 48, 64), num_classes=5, image_size=64, dense=True)


def test_a_head_for_other_classes_starts_afresh(tmp_path: Path):
    before = build(SMALL[0], classes=7)
    torch.save(before.state_dict(), tmp_path / "seven.pt")
    after = build(SMALL[0], classes=5, pretrained=tmp_path / "seven.pt").state_dict()
    for key, tensor in before.state_dict().items():
        if tensor.shape == after[key].shape:
            assert torch.equal(tensor, after[key]), key
        else:
            assert "classifier" in key and len(after[key]) == 5


@pytest.mark.parametrize(
    ("name", "options"),
    [(SMALL[0], {}), (SMALL[1], {}), (SMALL[1], {"aux_loss": True})],
    ids=["lraspp", "deeplab", "auxiliary head"],
)
def test_every_parameter_that_asks_for_a_gradient_gets_one(name: str, options: dict[str, bool]):
    """DistributedDataParallel waits for all of them."""
    model = build(name, options=options)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert any("aux_classifier" in key for key in model.state_dict()) == bool(options)


def test_an_auxiliary_head_is_trained_where_the_task_says_so():
    """The loss is weighted, the score is that of the network's answer; other heads than none are refused."""
    model, task = build(SMALL[1], options={"aux_loss": True}), SegmentationSettings(auxiliary=0.4).build()
    task.prepare(model)
    target = torch.randint(5, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)  # of dropout
    found = task.losses(model, {"inputs": images, "target": target})
    torch.manual_seed(0)
    answer, auxiliary = copy.deepcopy(model)(images)
    own, beside = (
        F.cross_entropy(logits, target, reduction="none").mean((1, 2)) for logits in (answer, auxiliary)
    )
    torch.testing.assert_close(found.scores, own)
    torch.testing.assert_close(found.losses, own + 0.4 * beside)
    found.losses.sum().backward()
    assert all(p.grad is not None for p in model.aux_classifier.parameters())
    assert isinstance(model.eval()(images), torch.Tensor), "an evaluation asks for the answer alone"
    with pytest.raises(UserError, match=r"task\.auxiliary: 0\.4, and LRASPP has no auxiliary head"):
        task.prepare(build(SMALL[0]))


def test_a_classifiers_weights_are_those_of_the_backbone(tmp_path: Path):
    """torchvision's own networks, whose tensors are called otherwise in the two."""
    classifier = models.mobilenet_v3_large(num_classes=4)
    torch.save(classifier.state_dict(), tmp_path / "model.pt")
    network = build(SMALL[0], pretrained=tmp_path / "model.pt")
    assert torch.equal(network.backbone["0"][0].weight, classifier.features[0][0].weight)
    last = network.backbone["16"][1].running_var, classifier.features[16][1].running_var
    assert torch.equal(*last) and len(network.backbone) == 17
    torch.save(models.resnet18(num_classes=4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"model\.pretrained: .*other\.pt does not fit LRASPP"):
        build(SMALL[0], pretrained=tmp_path / "other.pt")
