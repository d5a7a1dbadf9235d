"""A curriculum that a search can vary: three stages described by a few free numbers, every choice of them valid.

A search draws each number on its own, so constraints are built in rather than checked: fractions of the compute
come from independent numbers by -log(u) / sum (uniform on the simplex if each u is), and the bandwidths can
only rise, because each is given as how far it goes towards the full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import CostOf, Stage, input_size, lay_out
from raytrain_speedup.methods.curriculum.shrinking import ShrinkingInput


def _u(stage: str) -> float:
    return Field(
        math.exp(-1.0),
        gt=0,
        lt=1,
        description=f"-log of it weighs the {stage} stage's fraction of the compute",
    )


class SimplexCurriculum(ShrinkingInput):
    """Three stages of rising bandwidth and magnitude, for searches; the last one shows the images in full."""

    method: Literal["simplex"] = "simplex"
    u_1: float = _u("first")
    u_2: float = _u("second")
    u_3: float = _u("last")
    ratio: float = Field(
        0.43, gt=0, le=1, description="bandwidth of the first stage, as a fraction of the image size"
    )
    rise: float = Field(
        0.5, ge=0, le=1, description="how far the second stage's bandwidth goes from the first's to the full"
    )
    magnitude_start: float = Field(0.0, ge=0, le=10, description="RandAugment magnitude of the first stage")
    magnitude_end: float = Field(9.0, ge=0, le=10, description="RandAugment magnitude of the last stage")

    def fractions(self) -> tuple[float, ...]:
        """The fraction of the compute of each stage; they sum to 1."""
        weights = [-math.log(u) for u in (self.u_1, self.u_2, self.u_3)]
        return tuple(weight / sum(weights) for weight in weights)

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """Three stages, or fewer where neighbours come out the same."""
        ratios = (self.ratio, self.ratio + self.rise * (1 - self.ratio), 1.0)
        sizes = [input_size(ratio, image_size, stride) for ratio in ratios]
        middle = (self.magnitude_start + self.magnitude_end) / 2
        magnitudes = (self.magnitude_start, middle, self.magnitude_end)
        stages = [
            self._stage(size, image_size, magnitude, cost_of, smallest=sizes[0])
            for size, magnitude in zip(sizes, magnitudes, strict=True)
        ]
        return lay_out(stages, self.fractions())
