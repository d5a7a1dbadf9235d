"""PatchDropout as a curriculum: a transformer sees a part of each image's patches first, and all at the end.

Liu et al., "PatchDropout: Economizing Vision Transformers Using Patch Dropout", WACV 2023,
https://arxiv.org/abs/2208.07220: half of the patches halve compute and memory; the paper claims the accuracy of all
of them, on images of high resolution, at a rate that stays to the end. Li et al. (FLIP, CVPR 2023,
https://arxiv.org/abs/2212.00794) end with a short stretch on all patches, since images are judged whole: so does
this curriculum. Sizes and augmentation stay.

A sample costs the fraction of its patches that is kept. That is right for all layers but attention, which is
quadratic and saves more (the FLOPs of a run are counted as they are).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import CostOf, CurriculumSettings, Stage, lay_out


class PatchDropout(CurriculumSettings):
    """Token dropping for vision transformers, and all tokens at the end."""

    method: Literal["patch-dropout"] = "patch-dropout"
    cost: Literal["area"] = Field(
        "area", description="A sample costs the fraction of its patches that is kept."
    )
    kept: float = Field(0.5, gt=0, le=1, description="Fraction of the patches that the first stage keeps.")
    until: float = Field(0.8, gt=0, lt=1, description="Fraction of the compute spent in the first stage.")

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """A stage of a part of the patches, and one of all."""
        stages = [Stage(ends_at=1.0, tokens=self.kept, cost=self.kept), Stage(ends_at=1.0)]
        return lay_out(stages, [self.until, 1 - self.until])
