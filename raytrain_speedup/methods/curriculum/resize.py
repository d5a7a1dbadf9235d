"""The control for EfficientTrain++: its sizes by a plain resize, without its augmentation schedule.

What is left is progressive resizing, the baseline that a curriculum has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import CostOf, Stage
from raytrain_speedup.methods.curriculum.efficienttrainpp import EqualComputeStages


class ProgressiveResize(EqualComputeStages):
    """The sizes of EfficientTrain++; the recipe's own augmentation throughout."""

    method: Literal["resize"] = "resize"
    kernel: Literal["resize"] = Field(
        "resize",
        description="How an image is reduced: Lanczos with anti-aliasing, and nothing else.",
    )

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """A stage for each size of EfficientTrain++."""
        return self._stages([None] * 10, image_size, stride, model, cost_of)
