"""torchvision's detectors asked for a loss an image: theirs of that image alone; and their detections."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from tiny_boxes import SIDE, faster_rcnn, images_and_boxes

from raytrain_speedup.engine.cost.measure import FlopCounter, training_flops
from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.models.detectors import KeyedSampler, one_loss_an_image, torchvision_targets
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.detection import Detection

SSDLITE, FASTER = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"
NAMES = (SSDLITE, FASTER, "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")


def build(name: str, classes: int = 2, **more: object) -> nn.Module:
    settings = ModelSettings(name=f"torchvision/{name}", **more)
    return build_model(settings, num_classes=classes, image_size=SIDE, dense=None)


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """One loss an image, and torchvision's own, which takes images as they are; neither moves its statistics. In
    float64, where rounding changes no order of proposals."""
    torch.manual_seed(0)
    theirs = build(name).double()
    theirs.score_thresh = 0.0  # that fresh networks find something
    if "rcnn" in name:
        theirs.rpn._post_nms_top_n = {"training": 50, "testing": 60}  # of which the second stage takes long
    ours = copy.deepcopy(theirs)
    assert one_loss_an_image(ours) and not one_loss_an_image(ours)
    theirs.transform = GeneralizedRCNNTransform(SIDE, SIDE, [0.0] * 3, [1.0] * 3)
    for network in (ours, theirs):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_detections_are_torchvisions_of_each_image_alone(name: str) -> None:
    ours, theirs = both(name)
    images, boxes = (tensor.double() for tensor in images_and_boxes(3 if "mobilenet" in name else 2))
    draws = torch.tensor([5, 9, 5])[: len(images)]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    losses = ours(images, boxes, draws)
    for image, target, key, loss in zip(images, torchvision_targets(boxes), draws, losses, strict=True):
        if "rcnn" in name:  # it draws; what is drawn from is looked at below
            for part, own in ((theirs.rpn, ours.rpn), (theirs.roi_heads, ours.roi_heads)):
                part.fg_bg_sampler = own.fg_bg_sampler
                part.fg_bg_sampler.key = key
        expected = sum(theirs([image], [target]).values())
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        judged, found = ours(images, boxes, draws)
        torch.testing.assert_close(judged, losses, rtol=1e-9, atol=1e-9)
        assert ours.training is False and not any(part.training for part in ours.modules())
        for rows, expected in zip(found, theirs(list(images)), strict=True):
            count = len(expected["boxes"])
            assert count and not rows[count:].any()
            torch.testing.assert_close(rows[:count, :4], expected["boxes"])
            torch.testing.assert_close(rows[:count, 5], expected["scores"])
            assert rows[:count, 4].tolist() == expected["labels"].tolist()


def test_how_the_losses_of_a_batch_follow_from_them() -> None:
    """RetinaNet's is their mean, SSD's is weighted by the anchors that are matched."""
    images, boxes = (tensor.double() for tensor in images_and_boxes())
    targets = torchvision_targets(boxes)
    for name in ("retinanet_resnet50_fpn", SSDLITE):
        ours, theirs = both(name)
        losses, whole = ours(images, boxes, torch.arange(3)), sum(theirs(list(images), targets).values())
        weights = torch.ones(3, dtype=torch.float64)
        if name == SSDLITE:
            of_batch = ImageList(images, [(SIDE, SIDE)] * 3)
            anchors = theirs.anchor_generator(of_batch, list(theirs.backbone(images).values()))
            weights = torch.tensor(
                [float(matched(theirs, *pair)) for pair in zip(targets, anchors, strict=True)]
            )
        torch.testing.assert_close((losses * weights).sum() / weights.sum(), whole)


def matched(network: nn.Module, target: dict[str, Tensor], anchors: Tensor) -> int:
    if not len(target["boxes"]):
        return 0
    return int((network.proposal_matcher(box_iou(target["boxes"], anchors)) >= 0).sum())


def test_a_crowd_and_padding_are_not_learnt() -> None:
    ours, _ = both(SSDLITE)
    images, boxes = (tensor.double() for tensor in images_and_boxes())
    plain = ours(images, boxes, torch.arange(3))
    more = torch.cat([boxes, torch.tensor([[[3.0, 3, 30, 40, -1], [0, 0, 0, 0, 0]]]).expand(3, -1, -1)], 1)
    assert torch.equal(ours(images, more, torch.arange(3)), plain)


def test_anchors_are_of_whole_precision_in_a_run_of_half() -> None:
    images, boxes = images_and_boxes()
    for network in (build(SSDLITE), faster_rcnn(2)):
        Detection().prepare(network)
        anchors = []
        generator = network.rpn.anchor_generator if hasattr(network, "rpn") else network.anchor_generator
        generator.register_forward_hook(lambda _, inputs, found, anchors=anchors: anchors.extend(found))
        with torch.autocast("cpu", torch.bfloat16):
            network(images, boxes, torch.arange(3))
            _, found = network.eval()(images, boxes, torch.arange(3))
        assert {grid.dtype for grid in (*anchors, found)} == {torch.float32}


def test_a_batch_of_one_image_and_of_one_without_objects_trains() -> None:
    """SSDlite's last map is a single cell, of which batch normalisation has no statistics."""
    network = build(SSDLITE)
    one_loss_an_image(network)
    images, boxes = images_and_boxes()
    for i in (0, 2):
        network(images[i : i + 1], boxes[i : i + 1], torch.zeros(1, dtype=torch.int64)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_anchors_are_drawn_as_torchvision_draws_them_but_from_a_key() -> None:
    labels = torch.tensor([1.0] * 6 + [0.0] * 20 + [-1.0] * 4)
    mine, theirs = KeyedSampler(8, 0.5, 0), BalancedPositiveNegativeSampler(8, 0.5)
    counts = torch.zeros(2, 30)
    for key in range(600):
        mine.key = torch.tensor(key)
        found, expected = mine([labels]), theirs([labels])
        assert [int(part[0].sum()) for part in found] == [int(part[0].sum()) for part in expected]
        counts += torch.stack([part[0] for part in found])
    assert chisquare(counts[0, :6]).pvalue > 0.01 and chisquare(counts[1, 6:26]).pvalue > 0.01
    assert not counts[0, 6:].any() and not counts[1, :6].any() and not counts[:, 26:].any()
    few = torch.tensor([1.0, 0.0, 0.0])  # fewer than are wanted: all
    assert [part[0].tolist() for part in mine([few])] == [part[0].tolist() for part in theirs([few])]
    first, again = mine([labels]), mine([labels])
    assert torch.equal(first[0][0], again[0][0]) and torch.equal(first[1][0], again[1][0])
    other = KeyedSampler(8, 0.5, 1)
    other.key = mine.key
    assert not torch.equal(other([labels])[1][0], first[1][0]), "anchors and proposals draw apart"


def test_the_flops_of_a_step_are_those_of_a_real_one() -> None:
    """Counted on shapes alone; of Faster R-CNN with as many proposals as it may learn from, which it has here."""
    task = Detection()
    for network in (build(SSDLITE), faster_rcnn(2)):
        task.prepare(network)
        counted = training_flops(network, task, (3, SIDE, SIDE))
        with FlopCounter() as counter:
            task.losses(network, task.example((3, SIDE, SIDE), 2)).losses.sum().backward()
        assert counted == counter.total / 2 > 0


@pytest.mark.parametrize(
    ("name", "classifier", "options", "taken"),
    [
        (SSDLITE, "mobilenet_v3_large", {}, "214 of the 262"),
        (SSDLITE, "mobilenet_v3_large", {"reduced_tail": True}, "262 of the 262"),
        (FASTER, "mobilenet_v3_large", {}, "262 of the 262"),
        ("fcos_resnet50_fpn", "resnet50", {}, "265 of the 265"),
    ],
)
def test_a_classifiers_weights_are_those_of_the_backbone(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    classifier: str,
    options: dict[str, bool],
    taken: str,
) -> None:
    """As far as the two are alike: the features of an image are then the classifier's."""
    torch.manual_seed(1)
    source = models.get_model(classifier, num_classes=4, **options).eval()
    torch.save(source.state_dict(), tmp_path / "model.pt")
    network = build(name, pretrained=tmp_path / "model.pt").eval()
    expected = (
        f"model.pretrained: {taken} tensors of the backbone are those of {tmp_path / 'model.pt'}; all else"
    )
    assert expected in caplog.text
    images, _ = images_and_boxes()
    with torch.no_grad():
        if classifier == "resnet50":
            *_, found = network.backbone.body(images).values()
            expected_maps = nn.Sequential(*list(source.children())[:-2])(
                images
            )  # without pooling and classes
        else:
            body = network.backbone.features[0] if name == SSDLITE else network.backbone.body
            found = images
            for layer in list(body.children())[:13]:
                found = layer(found)
            expected_maps = source.features[:13](images)
    torch.testing.assert_close(found, expected_maps)


def test_other_weights_are_refused_and_a_detector_of_other_classes_is_taken(tmp_path: Path) -> None:
    torch.save(models.resnet18(num_classes=4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"model\.pretrained: .*other\.pt does not fit FCOS"):
        build("fcos_resnet50_fpn", pretrained=tmp_path / "other.pt")
    for name in (SSDLITE, FASTER):
        before = build(name, classes=5).state_dict()
        frozen = {key: tensor for key, tensor in before.items() if "num_batches_tracked" not in key}
        torch.save(frozen, tmp_path / "five.pt")  # as published detectors are, with layers that were frozen
        after = build(name, classes=2, pretrained=tmp_path / "five.pt").state_dict()
        fresh = [
            key for key in before if not torch.equal(before[key].flatten()[:1], after[key].flatten()[:1])
        ]
        assert fresh and all("classification_head" in key or "box_predictor" in key for key in fresh)
        assert all(before[key].shape != after[key].shape for key in fresh)
