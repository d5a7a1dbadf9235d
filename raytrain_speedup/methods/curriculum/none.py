"""The control without a curriculum: every sample is shown in full from the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from raytrain_speedup.methods.curriculum.base import FULL, CostOf, CurriculumSettings, Stage


class NoCurriculum(CurriculumSettings):
    """One stage at full resolution, with the recipe's own augmentation."""

    method: Literal["none"] = "none"

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """The whole training as one stage."""
        return (FULL,)
