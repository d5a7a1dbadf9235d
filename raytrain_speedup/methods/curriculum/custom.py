"""A curriculum written out stage by stage: what a search varies and a schedule file carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from raytrain_speedup.methods.curriculum.base import (
    CostOf,
    CurriculumSettings,
    Stage,
    input_size,
    lay_out,
    relative_cost,
)
from raytrain_speedup.settings import Settings

FRACTION_TOLERANCE = 1e-3  # thirds may be written as .333


class CustomStage(Settings):
    """One stretch of a custom curriculum."""

    fraction: float = Field(gt=0, le=1, description="Fraction of the compute budget spent in this stage.")
    ratio: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Bandwidth as a fraction of the image size, put on the model's stride.",
    )
    magnitude: float | None = Field(
        None,
        ge=0,
        le=10,
        description="RandAugment magnitude; 0 is none, unset is data.randaugment.",
    )
    batch_factor: int = Field(1, ge=1, le=64, description="Multiple of the base batch size.")
    replay: int = Field(
        1,
        ge=1,
        le=16,
        description="How many times a sample is shown before a new one is read.",
    )


class CustomCurriculum(CurriculumSettings):
    """Stages by their fraction of the compute; the last one must show the images in full."""

    method: Literal["custom"] = "custom"
    schedule: tuple[CustomStage, ...] = Field(
        description="The stages in order; their fractions sum to 1 and the last one has ratio 1."
    )

    @field_validator("schedule")
    @classmethod
    def _is_whole(cls, schedule: tuple[CustomStage, ...]) -> tuple[CustomStage, ...]:
        total = math.fsum(stage.fraction for stage in schedule)
        if abs(total - 1) > FRACTION_TOLERANCE:
            raise ValueError(f"the fractions of the {len(schedule)} stages sum to {total:.4g}; expected 1")
        if schedule[-1].ratio != 1:
            raise ValueError(
                f"the last stage has ratio {schedule[-1].ratio:g}; expected 1, or the model never sees the "
                "images it is evaluated on"
            )
        return schedule

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """The stages of the schedule, in pixels; neighbours that come out the same are one."""
        sizes = [input_size(stage.ratio, image_size, stride) for stage in self.schedule]
        stages = [
            Stage(
                ends_at=1.0,
                size=size,
                magnitude=stage.magnitude,
                cost=relative_cost(size, image_size, cost_of),
                batch_factor=stage.batch_factor,
                replay=stage.replay,
            )
            for size, stage in zip(sizes, self.schedule, strict=True)
        ]
        return lay_out(stages, [stage.fraction for stage in self.schedule])
