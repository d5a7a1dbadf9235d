"""torchvision's detectors, as the engine wants a network: a batch of images and boxes in, a loss an image out.

torchvision averages its losses over a batch: SSD and FCOS over the matched anchors of all images, Faster R-CNN over
all sampled proposals. Pruning needs a loss of each image alone, so the backbone (and the heads of one-stage
detectors) see the batch, and torchvision's own loss is then asked about one image after another: what comes out is
its loss of a batch of that image. RetinaNet's batch loss is the mean of these; that of SSD and FCOS is their mean
weighted by the anchors matched in each image. Unweighted, an image counts as one however many objects it has, as in
every other task.

Images come normalised and in the size of the curriculum's stage, so torchvision's own `transform`, which would
bring them to one size again, is passed by. Anchors in pixels (Faster R-CNN, RetinaNet, FCOS) stay what they are at
every size; SSD's are fractions of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from raytrain_speedup import randomness
from raytrain_speedup.models.dense import PooledBatchNorm

Target = dict[str, Tensor]
"""torchvision's: `boxes` (n, 4) and `labels` (n,) of one image."""


def one_loss_an_image(network: nn.Module) -> bool:
    """Make a detector of torchvision what a task of detection asks, in place; the keys of its state dict stay.

    Its `forward(images (b, C, H, W), boxes (b, M, 5), draws (b,))` then gives the losses (b,), and in evaluation
    mode also what it found, (b, D, 6): left, top, right, bottom, label and score, the surest first, and zeros.
    False where it is no such detector, or was made one before.
    """
    kind = PER_IMAGE.get(type(network))
    if kind is None:
        return False
    detector: Any = network
    detector.__class__ = kind
    detector.made_ready()
    for layer in network.modules():  # SSD's last map is a single cell, and a batch may be a single image
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = PooledBatchNorm
    return True


class Detector:
    """What is common to all four: of one image after another."""

    backbone: Any
    training: bool

    def forward(self, images: Tensor, boxes: Tensor, draws: Tensor) -> Any:
        maps = self.backbone(images)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        # Anchors take the type of the maps, and bfloat16 tells not all pixels apart beyond 256.
        features = {name: grid.to(images.dtype) for name, grid in maps.items()}
        if images.is_meta:
            return self._shapes(features)
        return self._answers(images, features, torchvision_targets(boxes), draws)

    def made_ready(self) -> None:
        """Called once, when a network of torchvision becomes one of these."""

    def _shapes(self, features: Mapping[str, Tensor]) -> Tensor:
        """Any losses (b,) that cost what the real ones do, for tensors without numbers."""
        raise NotImplementedError

    def _answers(
        self, images: Tensor, features: Mapping[str, Tensor], targets: list[Target], draws: Tensor
    ) -> Any:
        raise NotImplementedError


class OneStage(Detector):
    """Anchors, and for each a class and a box."""

    head: Any
    anchor_generator: Any
    compute_loss: Any
    postprocess_detections: Any

    def _shapes(self, features: Mapping[str, Tensor]) -> Tensor:
        return _sums(*self.head(list(features.values())).values())

    def _answers(
        self, images: Tensor, features: Mapping[str, Tensor], targets: list[Target], draws: Tensor
    ) -> Any:
        maps = list(features.values())
        outputs = {name: output.to(images.dtype) for name, output in self.head(maps).items()}
        sizes = [tuple(images.shape[-2:])] * len(images)
        anchors = self.anchor_generator(ImageList(images, sizes), maps)
        cells = [grid.shape[-2] * grid.shape[-1] for grid in maps]
        losses = []
        for i, target in enumerate(targets):
            own = {name: output[i : i + 1] for name, output in outputs.items()}
            losses.append(_added(self._losses(target, own, anchors[i], cells)))
        if self.training:
            return torch.stack(losses)
        return torch.stack(losses), padded(self._detections(outputs, anchors, sizes, cells))

    def _losses(
        self, target: Target, outputs: dict[str, Tensor], anchors: Tensor, cells: list[int]
    ) -> dict[str, Tensor]:
        """torchvision's losses of one image."""
        return self.compute_loss([target], outputs, [anchors])

    def _detections(
        self, outputs: dict[str, Tensor], anchors: list[Tensor], sizes: list[Any], cells: list[int]
    ) -> list[dict[str, Tensor]]:
        each = len(anchors[0]) // sum(cells)  # anchors of a cell
        levels = [count * each for count in cells]
        split = {name: list(output.split(levels, 1)) for name, output in outputs.items()}
        by_level = [list(of_image.split(levels)) for of_image in anchors]
        return self.postprocess_detections(split, by_level, sizes)


class _RetinaNet(OneStage, RetinaNet):
    pass


class _FCOS(OneStage, FCOS):
    def _losses(
        self, target: Target, outputs: dict[str, Tensor], anchors: Tensor, cells: list[int]
    ) -> dict[str, Tensor]:
        return self.compute_loss([target], outputs, [anchors], cells)


class _SSD(OneStage, SSD):
    def _losses(
        self, target: Target, outputs: dict[str, Tensor], anchors: Tensor, cells: list[int]
    ) -> dict[str, Tensor]:
        if len(target["boxes"]):
            matched = self.proposal_matcher(box_iou(target["boxes"], anchors))
        else:
            matched = torch.full((len(anchors),), -1, device=anchors.device)
        return self.compute_loss([target], outputs, [anchors], [matched])

    def _detections(
        self, outputs: dict[str, Tensor], anchors: list[Tensor], sizes: list[Any], cells: list[int]
    ) -> list[dict[str, Tensor]]:
        return self.postprocess_detections(outputs, anchors, sizes)


class _FasterRCNN(Detector, FasterRCNN):
    """Proposals, and for each a class and a box. Which anchors and proposals are learnt from is drawn.

    Attributes:
        one_by_one: parts that are asked about one image after another.
    """

    one_by_one = ("rpn", "roi_heads")

    def made_ready(self) -> None:
        """What is drawn for an image comes from its key, and boxes are float32: torchvision makes them in the
        arithmetic of the heads, be it of half precision."""
        for head in (self.rpn.head, self.roi_heads.box_predictor):
            head.register_forward_hook(_promoted)
        for stream, part in enumerate((self.rpn, self.roi_heads)):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = KeyedSampler(sampler.batch_size_per_image, sampler.positive_fraction, stream)

    def _shapes(self, features: Mapping[str, Tensor]) -> Tensor:
        """With as many proposals as are learnt from at most; pooling them is no product."""
        maps = list(features.values())
        objectness, deltas = self.rpn.head(maps)
        first = _sums(*objectness, *deltas)
        heads, anchors = self.roi_heads, sum(output[0].numel() for output in objectness)
        count = min(anchors, heads.fg_bg_sampler.batch_size_per_image)
        side = heads.box_roi_pool.output_size
        pooled = maps[0].mean((2, 3))[:, None, :, None, None].expand(-1, count, -1, *side).flatten(0, 1)
        second = sum(
            output.view(len(first), -1).sum(1) for output in heads.box_predictor(heads.box_head(pooled))
        )
        return first + second

    def _answers(
        self, images: Tensor, features: Mapping[str, Tensor], targets: list[Target], draws: Tensor
    ) -> Any:
        losses, found = [], []
        size = [tuple(images.shape[-2:])]
        for i, target in enumerate(targets):
            own = {name: grid[i : i + 1] for name, grid in features.items()}
            image = ImageList(images[i : i + 1], size)
            with self._learning(draws[i]):
                proposals, first = self.rpn(image, own, [target])
                _, second = self.roi_heads(own, proposals, size, [target])
            losses.append(_added(first) + _added(second))
            if not self.training:
                proposals, _ = self.rpn(image, own)
                found += self.roi_heads(own, proposals, size)[0]
        return torch.stack(losses) if self.training else (torch.stack(losses), padded(found))

    @contextmanager
    def _learning(self, key: Tensor) -> Iterator[None]:
        """The two parts give losses, in an evaluation too; their layers stay in the mode they are in."""
        parts = (self.rpn, self.roi_heads)
        for part in parts:
            part.training, part.fg_bg_sampler.key = True, key
        yield
        for part in parts:
            part.training = self.training


class KeyedSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler of anchors or proposals of one image, as a function of a key.

    Attributes:
        key: () int64, of the image.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, stream: int) -> None:
        super().__init__(batch_size_per_image, positive_fraction)
        self.stream, self.key = stream, torch.zeros((), dtype=torch.int64)

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        (labels,) = matched_idxs
        key = randomness.words(self.key, seed=0, epoch=0, streams=(self.stream,))[0]
        places = torch.arange(len(labels), device=labels.device)
        order = randomness.bits(key + places, seed=0, epoch=0, streams=(self.stream,))[0].argsort(stable=True)
        shuffled = labels[order]
        positive, negative = order[shuffled >= 1], order[shuffled == 0]
        positive = positive[: int(self.batch_size_per_image * self.positive_fraction)]
        negative = negative[: self.batch_size_per_image - len(positive)]
        chosen = torch.zeros(2, len(labels), dtype=torch.uint8, device=labels.device)
        chosen[0, positive] = chosen[1, negative] = 1
        return [chosen[0]], [chosen[1]]


PER_IMAGE: dict[type[nn.Module], Any] = {
    SSD: _SSD,
    FCOS: _FCOS,
    RetinaNet: _RetinaNet,
    FasterRCNN: _FasterRCNN,
}


def _promoted(head: nn.Module, inputs: Any, outputs: Any) -> Any:
    """A head's outputs, tensors or lists of them, in float32 where they are of half precision."""
    if isinstance(outputs, Tensor):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return tuple([_promoted(head, inputs, output) for output in outputs])


def _added(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _sums(*outputs: Tensor) -> Tensor:
    """(b,) of tensors (b, ...)."""
    return torch.stack([output.flatten(1).sum(1) for output in outputs]).sum(0)


def torchvision_targets(boxes: Tensor) -> list[Target]:
    """torchvision's targets of boxes (b, M, 5), crowds left out."""
    return [{"boxes": rows[:, :4], "labels": rows[:, 4].long()} for rows in (b[b[:, 4] > 0] for b in boxes)]


def padded(detections: list[dict[str, Tensor]]) -> Tensor:
    """(b, D, 6), D of the image with most."""
    rows = [
        torch.cat([found["boxes"], found["labels"][:, None], found["scores"][:, None]], 1)
        for found in detections
    ]
    most = max(map(len, rows))
    return torch.stack([F.pad(found, (0, 0, 0, most - len(found))) for found in rows])
