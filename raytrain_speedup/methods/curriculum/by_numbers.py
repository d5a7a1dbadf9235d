"""Curricula by numbers of one's own: written out stage by stage, or by a few free numbers that a search varies.

A search draws each number on its own, so constraints are built in rather than checked: fractions of the compute
come from independent numbers by -log(u) / sum (uniform on the simplex if each u is), and the bandwidths can
only rise, because each is given as how far it goes towards the full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from raytrain_speedup.methods.curriculum.base import (
    CostOf,
    CurriculumSettings,
    ShrinkingInput,
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
