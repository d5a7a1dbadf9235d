"""The metric that ranks runs, and which way is better: the only place that turns a value into its merit.

Whatever compares, tests, sorts or draws asks here for `merit`, of which more is better, and shows people the value
as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]
"""Whether larger or smaller values are better."""

SplitName = Literal["test", "validation"]


@dataclass(frozen=True)
class Metric:
    """What ranks runs.

    A metric of which more is better is in percent, as accuracy and mIoU are; one of which less is better (a loss, a
    perplexity, FID) has a unit of its own.
    """

    name: str = "accuracy"
    direction: Direction = "max"

    @property
    def sign(self) -> int:
        """1 where larger is better, -1 where smaller is."""
        return 1 if self.direction == "max" else -1

    @property
    def unit(self) -> str:
        """What follows a value, without the space."""
        return "%" if self.direction == "max" else ""

    @property
    def spoken(self) -> str:
        """The name for people."""
        return spoken(self.name)

    def text(self, value: float, *, signed: bool = False) -> str:
        """A value, or a difference of two, for people; without the unit."""
        return f"{value:{'+' if signed else ''}{'.2f' if self.unit else '.4g'}}"

    def difference(self, value: float, interval: tuple[float, float] | None) -> str:
        """A difference and its interval, for people: `-0.12 points [-0.30, +0.05]`, `+0.0031 in loss`."""
        text = self.text(value, signed=True) + (" points" if self.unit else f" in {self.spoken}")
        if interval is None:
            return text
        low, high = (self.text(bound, signed=True) for bound in interval)
        return f"{text} [{low}, {high}]"

    def merit(self, value: float) -> float:
        """The value, or a difference of two, turned so that larger is better."""
        return self.sign * value

    def key(self, split: SplitName) -> str:
        """What a run calls its value on a split. The loss of the test split is not called `loss`: that would be
        read as the training's."""
        if split == "validation":
            return f"val_{self.name}"
        return "test_loss" if self.name == "loss" else self.name


ACCURACY = Metric()
"""What ranks runs that do not say what theirs is."""


def spoken(name: str) -> str:
    """A metric's name for people: `miou` is mIoU, `pixel_accuracy` pixel accuracy."""
    return name.replace("miou", "mIoU").replace("frechet", "Fréchet").replace("_", " ")
