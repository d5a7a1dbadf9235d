"""Detection of objects by torchvision's detectors, judged by COCO's average precision.

A sample's loss is torchvision's own loss of a batch of that image (`models/detectors.py`), so an image counts as
one however many objects it has, and pruning scores images as it does in classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.data.boxes import FIELDS
from raytrain_speedup.optional import optional_library
from raytrain_speedup.tasks.average_precision import average_precision
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, Task, TaskSettings
from raytrain_speedup.tasks.images import box_grid

LOSS, OBJECT, FOUND = range(3)
"""What a row of `totals` tells."""

SURE = 0.3
"""Score of a detection that a picture shows."""


class DetectionSettings(TaskSettings):
    kind: Literal["detection"] = "detection"
    max_detections: int = Field(
        100, ge=1, description="of an image that are judged, the surest first; COCO's rules say 100"
    )

    def build(self) -> Task:
        return Detection(self.max_detections)


class Detection(Task):
    """Images and boxes (b, M, 5), as `data/boxes.py` says.

    The network is called with images, boxes and the keys `draws`, and answers with the losses (b,), and in
    evaluation mode also with what it found, (b, D, 6): left, top, right, bottom, label and score, and zeros. A
    detector of torchvision is made to.

    Args:
        max_detections: of an image and class that are judged.
    """

    targets = "boxes"
    draws = True
    collected = True
    shown = 8
    metric = "map"
    others: Mapping[str, Direction] = {"ap50": "max"}

    def __init__(self, max_detections: int = 100) -> None:
        self.max_detections = max_detections

    def prepare(self, model: nn.Module) -> None:
        optional_library("pycocotools", key="task.kind: detection", extra="detection")  # before a training
        from raytrain_speedup.models.detectors import one_loss_an_image  # imports torchvision

        one_loss_an_image(model)

    def losses(self, model: Model, batch: Batch) -> Losses:
        own = model(batch["inputs"], batch["target"], batch["draws"]).float()
        return Losses(own, own)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        """Rows of eight: the image's index, what is told, label, score (or loss), left, top, right, bottom."""
        losses, found = model(batch["inputs"], batch["target"], batch["draws"])
        image, target = batch["index"].double(), batch["target"].double()
        nowhere = target.new_zeros(len(image), 1, FIELDS)
        rows = [
            _rows(image, LOSS, losses.double()[:, None], nowhere),
            _rows(image, OBJECT, torch.zeros_like(target[..., 4]), target),
            _rows(image, FOUND, found[..., 5].double(), found.double()),
        ]
        told = torch.cat(rows)
        return told[(told[:, 1] == LOSS) | (told[:, 2] != 0)]  # without the zeros of fewer boxes

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        rows = totals.cpu()
        rows = rows[rows[:, 0].argsort(stable=True)]  # of whatever worker
        losses, objects, found = (rows[rows[:, 1] == what] for what in (LOSS, OBJECT, FOUND))
        both, half = average_precision(
            objects[:, [0, 2, 4, 5, 6, 7]].numpy(),
            found[:, [0, 2, 4, 5, 6, 7, 3]].numpy(),
            most=self.max_detections,
        )
        return {"loss": float(losses[:, 3].mean()), "map": 100 * both, "ap50": 100 * half}

    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        """An object in the middle of every image."""
        inputs = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
        height, width = shape[1:]
        box = torch.tensor([width / 4, height / 4, 3 * width / 4, 3 * height / 4, 1.0])
        return {"inputs": inputs, "target": box.expand(count, 1, FIELDS), "draws": torch.arange(count)}

    def images(self, model: Model, batch: Batch, plain: Tensor) -> dict[str, bytes]:
        """A row of images with their objects, and below it with those that were found."""
        _, found = model(batch["inputs"], batch["target"], batch["draws"])
        sure = found[..., :FIELDS] * (found[..., 5:] >= SURE)
        return {"decisions": box_grid(plain, batch["target"], sure)}


def _rows(image: Tensor, kind: int, score: Tensor, boxes: Tensor) -> Tensor:
    """(b n, 8) float64 of images (b,), scores (b, n) and boxes (b, n, 5 or more)."""
    index = image[:, None, None].expand(-1, score.shape[1], 1)
    kinds = torch.full_like(score, kind)[..., None]
    label, sides = boxes[..., 4:5], boxes[..., :4]
    return torch.cat([index, kinds, label, score[..., None], sides], -1).flatten(0, 1)
