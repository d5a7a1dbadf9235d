"""Learning from a teacher: its softened outputs are the target, whatever the task it was trained for.

Validation asks how often the student decides as the teacher does, on images made for that alone; the test is the
task's own, on real data.
"""

from __future__ import annotations

from torch import Tensor

from raytrain_speedup.methods.distillation.losses import distillation_loss
from raytrain_speedup.tasks.base import Split, Task


class Distillation(Task):
    """Wraps the task of the teacher. Targets are the teacher's logits (floating point), or labels (int64).

    Args:
        task: what the teacher was trained for.
        temperature: of the distillation loss (Hinton et al. 2015, arXiv 1503.02531).
    """

    def __init__(self, task: Task, temperature: float) -> None:
        self.task = task
        self.temperature = temperature
        self.metric, self.decisions = task.metric, task.decisions

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        return distillation_loss(target.float(), output.float(), self.temperature)

    def totals(self, output: Tensor, target: Tensor) -> Tensor:
        return self.task.totals(output, self.classes(target))

    def classes(self, target: Tensor) -> Tensor:
        return target.argmax(1) if target.is_floating_point() else target

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        metrics = self.task.metrics(totals, split)
        if split == "val":  # nothing here is right or wrong, only alike or not
            return {"loss": metrics["loss"], "agreement": metrics[self.decisions]}
        return metrics
