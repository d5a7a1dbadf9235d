"""What a curriculum is: for every point of the training, how much of each sample is shown.

A curriculum is a list of stages over progress, where progress in [0, 1] is the share of the compute budget
that is spent. The loader, the augmentation and the model follow the stage of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from raytrain_speedup.settings import Settings


@dataclass(frozen=True)
class Stage:
    """One stretch of a curriculum.

    Attributes:
        ends_at: the progress in (0, 1] at which the stage ends; the last one ends at 1.
        size: side of the input in pixels, the bandwidth B of the paper; None leaves the data as they are.
        magnitude: RandAugment magnitude; 0 is the identity, None leaves the recipe's augmentation alone.
        cost: compute of one sample relative to one at full size, (B/N)^2 unless it was measured.
        batch_factor: multiple of the base batch size.
        replay: how many times a fresh sample is shown before new ones are read (1 = no replay buffer).
    """

    ends_at: float
    size: int | None = None
    magnitude: float | None = None
    cost: float = 1.0
    batch_factor: int = 1
    replay: int = 1


CostOf = Callable[[int], float]
"""Compute of one sample of side B pixels, in any unit."""

FULL = Stage(ends_at=1.0)


class CurriculumSettings(Settings):
    """What the experiment file says of a curriculum; `method` names it."""

    method: str
    kernel: Literal["fourier", "aligned", "resize"] = Field(
        "fourier",
        description="How an image is reduced to the stage's size: `fourier` is the paper's crop of the spectrum, "
        "`aligned` the same on half-pixel centres (it commutes with flips), `resize` is Lanczos.",
    )
    cost: Literal["area", "flops"] = Field(
        "area",
        description="What a sample of side B costs relative to one of side N: `area` is (B/N)^2, `flops` is "
        "measured on the model before the run.",
    )
    lr_rule: Literal["constant", "sqrt", "linear"] = Field(
        "sqrt",
        description="How the learning rate grows with the batch in stages whose batch factor is above 1.",
    )

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """The stages for images of side `image_size`, in order; the last one shows them in full.

        Args:
            image_size: N, the side of the model's full input in pixels.
            stride: sizes are rounded up to a multiple of it: what the model's patches or windows divide.
            model: name of the model, for settings that depend on its family.
            cost_of: compute of one sample of side B, in any unit; its area where it is not given.

        Raises:
            UserError: if the stages cannot be laid out for this size.
        """
        raise NotImplementedError
