"""Learning from a teacher: its softened outputs are the target, whatever the task it was trained for.

Validation asks how often the student decides as the teacher does, on images made for that alone; the test is the
task's own, on real data.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.methods.distillation.losses import distillation_loss
from raytrain_speedup.tasks.base import Model, Split, SupervisedTask


class Distillation(SupervisedTask):
    """Wraps the task of the teacher. Targets are the teacher's logits (floating point), or labels (int64).

    Args:
        task: what the teacher was trained for.
        temperature: of the distillation loss (Hinton et al. 2015, arXiv 1503.02531).
        num_classes: that the teacher knows.
    """

    def __init__(self, task: SupervisedTask, temperature: float, num_classes: int) -> None:
        self.task = task
        self.temperature, self.num_classes = temperature, num_classes
        self.metric, self.decisions, self.direction = task.metric, task.decisions, task.direction
        self.others = task.others
        self.targets, self.logits = task.targets, task.logits
        self.mixes, self.shown = task.mixes, task.shown

    def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        return distillation_loss(target.float(), output.float(), self.temperature)

    def judge(self, output: Tensor, target: Tensor) -> Tensor:
        return self.task.judge(output, _classes(target))

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        metrics = self.task.metrics(totals, split)
        if split == "val":  # nothing here is right or wrong, only alike or not
            return {"loss": metrics["loss"], "agreement": metrics[self.decisions]}
        return metrics

    def example_target(self, shape: tuple[int, ...], count: int) -> Tensor:
        classes = self.task.example_target(shape, count)
        return classes.new_zeros((count, self.num_classes, *classes.shape[1:])).float()

    def images(self, model: Model, batch: Batch, plain: Tensor) -> Mapping[str, bytes]:
        return self.task.images(model, batch | {"target": _classes(batch["target"])}, plain)


def _classes(target: Tensor) -> Tensor:
    """What the target says in classes, int64."""
    return target.argmax(1) if target.is_floating_point() else target
