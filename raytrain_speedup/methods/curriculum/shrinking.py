"""What the curricula with early small inputs have in common: using what the small inputs leave free.

EfficientTrain++ (Wang et al., TPAMI 2024, https://arxiv.org/abs/2405.08768) names two techniques: while
samples are cheap, the loader has to deliver more of them (answered by showing each one several times), and a
device that a batch of full inputs fills is left half empty (answered by larger batches).
"""

from __future__ import annotations

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import CostOf, CurriculumSettings, Stage, relative_cost


class ShrinkingInput(CurriculumSettings):
    """A curriculum whose early stages show smaller inputs."""

    max_batch_factor: int = Field(
        1,
        ge=1,
        le=64,
        description="Largest multiple of the base batch that an early stage may use; it takes as many as "
        "its smaller inputs leave memory for. 1 keeps the batch constant, as the reference does.",
    )
    max_replay: int = Field(
        1,
        ge=1,
        le=16,
        description="Times a sample is shown before a new one is read in the stage of the smallest inputs; a later "
        "stage takes as many as it needs to read no faster than that one, and none shows more than its inputs are "
        "cheaper. 1 reads every sample; the paper has 4 for DeiT-S and ResNet-50 (at 160 pixels 2), 2 for Swin-T "
        "and CSWin-T (at 160 pixels none).",
    )

    def _stage(
        self, size: int, image_size: int, magnitude: float | None, cost_of: CostOf | None, *, smallest: int
    ) -> Stage:
        """A stage at `size` of a curriculum that begins at `smallest`, all in pixels."""
        times = times_smaller(size, image_size)
        needed = -(-self.max_replay * smallest**2 // size**2)  # rounded up
        return Stage(
            ends_at=1.0,
            size=size,
            magnitude=magnitude,
            cost=relative_cost(size, image_size, cost_of),
            batch_factor=min(self.max_batch_factor, times),
            replay=min(needed, times),
        )


def times_smaller(size: int, image_size: int) -> int:
    """How many samples of size `size` take the memory of one of size `image_size`, with 5 % to spare.

    The slack makes two samples of size 160 fit the place of one of size 224, which they exceed by 2 %.
    """
    return int(1.05 * (image_size / size) ** 2)
