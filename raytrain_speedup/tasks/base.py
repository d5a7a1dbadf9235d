"""What a task is: a loss per sample, and a metric that adds up over batches and workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from raytrain_speedup.settings import Settings

Split = Literal["val", "test"]


class TaskSettings(Settings):
    """What the experiment file says of a task; `kind` names it."""

    dense: ClassVar[bool] = False
    """Whether every pixel has a class, rather than every image."""

    kind: str

    def build(self) -> Task:
        """The task itself."""
        raise NotImplementedError


class Task(ABC):
    """Knows what a model's output means."""

    metric: str
    """What ranks runs, larger is better; it is reported as `val_<metric>` and `<metric>` (test)."""
    decisions: str
    """The metric that is the fraction of right decisions, in percent: against a teacher, the agreement."""

    @abstractmethod
    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """The training loss of every sample, (b,) float32, before weights and means."""

    @abstractmethod
    def totals(self, output: Tensor, target: Tensor) -> Tensor:
        """A vector that can be summed over batches and workers, float64 on the output's device."""

    def classes(self, target: Tensor) -> Tensor:
        """What the target says in classes, int64."""
        return target

    @abstractmethod
    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        """The metrics of the summed `totals` of a split; `loss` is among them, and so is `metric` (test)."""
