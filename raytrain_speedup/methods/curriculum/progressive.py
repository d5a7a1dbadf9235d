"""Progressive resizing as two libraries ship it: controls with settings that others published.

`composer-resize` is MosaicML Composer's (https://docs.mosaicml.com, method card Progressive Image Resizing, after
fast.ai): half of the training at half the size, then linear growth, then the last fifth at full size. Composer
rounds a size to multiples of 4 pixels, here it is put on the model's stride.

`timm-progressive` is the progressive batch schedule of timm's loader (1.0.31, `ScheduledBatchSampler`): a window
moves over a list of sizes, each with a batch as large as its inputs leave memory for, from the first to the last;
every epoch has as many batches. timm draws the size of each batch around the window's centre (a spread of .65
sizes, and a tenth of the batches of any); a stage here has one size, the nearest to the centre, which is timm's
schedule with a spread and a random mix of 0. So the first and the last size have half as many steps as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raytrain_speedup.methods.curriculum.base import (
    CostOf,
    CurriculumSettings,
    Stage,
    input_size,
    lay_out,
    relative_cost,
    times_smaller,
)


class ComposerResize(CurriculumSettings):
    """Progressive resizing with Composer's defaults: a control."""

    method: Literal["composer-resize"] = "composer-resize"
    kernel: Literal["resize"] = Field("resize", description="How an image is reduced: Lanczos, anti-aliased.")
    initial_scale: float = Field(0.5, gt=0, le=1, description="First size, as a fraction of the image size.")
    delay_fraction: float = Field(0.5, ge=0, le=1, description="Fraction of the samples shown at that size.")
    finetune_fraction: float = Field(0.2, gt=0, le=1, description="Fraction of the samples shown in full.")

    @model_validator(mode="after")
    def _leave_no_less_than_nothing(self) -> Self:
        if self.delay_fraction + self.finetune_fraction > 1:
            raise ValueError(
                f"delay_fraction ({self.delay_fraction}) and finetune_fraction ({self.finetune_fraction}) "
                "sum to more than 1; expected at most 1"
            )
        return self

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """The first size, growth in steps of a quarter of the stride, put on its multiples, and the full size."""
        growth = max(0.0, 1 - self.delay_fraction - self.finetune_fraction)
        first = input_size(self.initial_scale, image_size, stride)
        count = max(1, 4 * (image_size - first) // stride)
        ratios = [self.initial_scale + (1 - self.initial_scale) * (i + 0.5) / count for i in range(count)]
        shown = [self.delay_fraction, *[growth / count] * count, self.finetune_fraction]
        sizes = [first, *(input_size(ratio, image_size, stride) for ratio in ratios), image_size]
        pairs = [(size, share) for size, share in zip(sizes, shown, strict=True) if share > 0]
        stages = [
            Stage(ends_at=1.0, size=size, cost=relative_cost(size, image_size, cost_of)) for size, _ in pairs
        ]
        return lay_out(stages, [stage.cost * share for stage, (_, share) in zip(stages, pairs, strict=True)])


class TimmProgressive(CurriculumSettings):
    """timm's progressive schedule of sizes and batches: a control."""

    method: Literal["timm-progressive"] = "timm-progressive"
    kernel: Literal["resize"] = Field("resize", description="How an image is reduced: Lanczos, anti-aliased.")
    ratios: tuple[float, ...] = Field(
        (0.5, 0.75, 1.0), min_length=2, description="The sizes in turn, as fractions of the image size."
    )
    max_batch_factor: int = Field(
        4, ge=1, le=64, description="Largest multiple of the base batch; 1 keeps the batch constant."
    )

    @field_validator("ratios")
    @classmethod
    def _rise_to_the_full_size(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if list(ratios) != sorted(set(ratios)) or ratios[0] <= 0 or ratios[-1] != 1:
            raise ValueError(f"{list(ratios)} is not allowed; expected fractions that rise to 1")
        return ratios

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """A stage for each size; the first and the last have half the steps of the others."""
        sizes = [input_size(ratio, image_size, stride) for ratio in self.ratios]
        stages = [
            Stage(
                ends_at=1.0,
                size=size,
                cost=relative_cost(size, image_size, cost_of),
                batch_factor=min(self.max_batch_factor, times_smaller(size, image_size)),
            )
            for size in sizes
        ]
        steps = [0.5, *[1.0] * (len(sizes) - 2), 0.5]
        return lay_out(
            stages, [n * stage.cost * stage.batch_factor for n, stage in zip(steps, stages, strict=True)]
        )
