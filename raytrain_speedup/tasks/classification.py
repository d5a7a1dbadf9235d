"""Image classification: cross-entropy with label smoothing, top-1 accuracy."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raytrain_speedup.tasks.base import Split, SupervisedTask, Task, TaskSettings


class ClassificationSettings(TaskSettings):
    kind: Literal["classification"] = "classification"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="fraction of the target spread over all classes"
    )

    def build(self) -> Task:
        return Classification(self.label_smoothing)


class Classification(SupervisedTask):
    """Cross-entropy per sample; accuracy in percent.

    Args:
        label_smoothing: Szegedy et al. 2016 (arXiv 1512.00567), section 7; training losses only.
    """

    targets = "classes"
    logits = "image"
    mixes = frozenset({"mixup", "cutmix"})
    metric = decisions = "accuracy"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.float(), target, reduction="none", label_smoothing=self.label_smoothing)

    def judge(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output.float(), target, reduction="sum").double()
        correct = (output.argmax(1) == target).sum().double()
        return torch.stack([loss, correct, correct.new_tensor(float(len(target)))])

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        loss, correct, count = totals.tolist()
        return {"loss": loss / count, "accuracy": 100 * correct / count}

    def example_target(self, shape: tuple[int, ...], count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64)
