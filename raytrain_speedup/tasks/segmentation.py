"""Semantic segmentation: cross-entropy per pixel, mean intersection over union.

A sample's loss is the mean over its labelled pixels, so an image counts as one whatever part of it is labelled,
and pruning scores images as it does in classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raytrain_speedup.data.base import IGNORE_INDEX
from raytrain_speedup.data.batch import Batch
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, SupervisedTask, Task, TaskSettings
from raytrain_speedup.tasks.images import mask_grid


class SegmentationSettings(TaskSettings):
    kind: Literal["segmentation"] = "segmentation"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="fraction of the target spread over all classes"
    )

    auxiliary: float = Field(
        0.0,
        ge=0,
        description="weight of the loss of the network's auxiliary head, which takes no part in scores and "
        "metrics; model.options: {aux_loss: true} gives a network of torchvision one",
    )

    def build(self) -> Task:
        return Segmentation(self.label_smoothing, self.auxiliary)


class Segmentation(SupervisedTask):
    """Logits (b, K, h, w) against classes (b, H, W); pixels of the class `IGNORE_INDEX` are left out of everything.

    Logits of another size, as an input at low bandwidth gives them, are enlarged to that of the targets.

    Args:
        label_smoothing: training losses only.
        auxiliary: weight of the loss of the auxiliary head, .4 in most trainings on ADE20K (as in PSPNet, Zhao et
            al., CVPR 2017); 0 leaves the head alone.
    """

    targets = "masks"
    logits = "pixel"
    mixes = frozenset({"mixup"})  # masks would not be cut with the images
    shown = 8
    metric = "miou"
    decisions = "pixel_accuracy"
    others: Mapping[str, Direction] = {"pixel_accuracy": "max"}

    def __init__(self, label_smoothing: float = 0.0, auxiliary: float = 0.0) -> None:
        self.label_smoothing, self.auxiliary = label_smoothing, auxiliary

    def prepare(self, model: nn.Module) -> None:
        if not self.auxiliary:
            return
        from raytrain_speedup.models.dense import train_auxiliary_head  # imports torchvision

        if not train_auxiliary_head(model):
            raise UserError(
                f"task.auxiliary: {self.auxiliary:g}, and {type(model).__name__} has no auxiliary head; "
                "expected 0, or model.options: {aux_loss: true} and a network of torchvision that has one"
            )

    def losses(self, model: Model, batch: Batch) -> Losses:
        """With an auxiliary head a sample's score is still the loss of the network's answer alone."""
        output = model(batch["inputs"])
        if isinstance(output, Tensor):
            return self.losses_of(output, batch)
        answer, auxiliary = (self.losses_of(logits, batch) for logits in output)
        return answer._replace(losses=answer.losses + self.auxiliary * auxiliary.losses)

    def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        return _mean_losses(_fitted(output, target), target, self.label_smoothing)

    def judge(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum of the losses, number of images, and the K x K confusion matrix: row class, column prediction."""
        output = _fitted(output, target)
        loss = _mean_losses(output, target).double().sum()
        matrix = confusion(output.argmax(1), target, output.shape[1])
        return torch.cat([torch.stack([loss, loss.new_tensor(float(len(target)))]), matrix.flatten()])

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        loss, count = totals[:2].tolist()
        matrix = totals[2:].view(-1, round((len(totals) - 2) ** 0.5))
        return {
            "loss": loss / count,
            "miou": 100 * mean_iou(matrix),
            "pixel_accuracy": 100 * float(matrix.trace() / matrix.sum().clamp_min(1)),
        }

    def example_target(self, shape: tuple[int, ...], count: int) -> Tensor:
        return torch.zeros((count, *shape[1:]), dtype=torch.int64)

    def images(self, model: Model, batch: Batch, plain: Tensor) -> dict[str, bytes]:
        """A row of images; below it their masks, and the classes that the model gives their pixels."""
        return {"decisions": mask_grid(plain, batch["target"], model(batch["inputs"]).argmax(1))}


def confusion(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(K, K) float64: pixels of class `row` taken for class `column`; `IGNORE_INDEX` targets are not counted."""
    void = num_classes**2
    pair = torch.where(target == IGNORE_INDEX, void, target * num_classes + prediction)
    counts = torch.bincount(pair.flatten(), minlength=void + 1)[:void]
    return counts.view(num_classes, num_classes).double()


def mean_iou(matrix: Tensor) -> float:
    """Mean over classes of |predicted and true| / |predicted or true|, for a confusion matrix (K, K).

    A class that neither occurs nor is predicted has no such ratio and is left out (Everingham et al., "The PASCAL
    visual object classes challenge", IJCV 2015, sec. 4.2). 0 where nothing is labelled.
    """
    right = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - right
    return float((right / union)[union > 0].mean()) if matrix.any() else 0.0


def _fitted(output: Tensor, target: Tensor) -> Tensor:
    output = output.float()
    if output.shape[2:] == target.shape[1:]:
        return output
    return F.interpolate(output, size=target.shape[1:], mode="bilinear", align_corners=False)


def _mean_losses(output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(b,), the mean over the labelled pixels of each image; 0 where there are none."""
    losses = F.cross_entropy(
        output, target, reduction="none", ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing
    )
    return losses.sum((1, 2)) / (target != IGNORE_INDEX).sum((1, 2)).clamp_min(1)
