"""What a curriculum is: for every point of the training, how much of each sample is shown.

A curriculum is a list of stages over progress, where progress in [0, 1] is the fraction of the compute budget
that is spent. The loader, the augmentation and the model follow the stage of each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar, Literal

from pydantic import Field

from raytrain_speedup.settings import Settings


@dataclass(frozen=True)
class Stage:
    """One stretch of a curriculum.

    Attributes:
        ends_at: the progress in (0, 1] at which the stage ends; the last one ends at 1.
        size: of the input in pixels, the bandwidth B of the paper, or of a row in tokens; None leaves the data as
            they are.
        magnitude: RandAugment magnitude; 0 is the identity, None leaves it to the recipe (data.randaugment).
        cost: compute of one sample relative to one at full size, (B/N)^2 unless it was measured.
        batch_factor: multiple of the base batch size.
        replay: how many times a fresh sample is shown before new ones are read (1 = no replay buffer).
        tokens: fraction of its patches that a transformer keeps in training (`models/tokens.py`).
    """

    ends_at: float
    size: int | None = None
    magnitude: float | None = None
    cost: float = 1.0
    batch_factor: int = 1
    replay: int = 1
    tokens: float = 1.0


Kernel = Literal["fourier", "aligned", "resize"]

LearningRateRule = Literal["constant", "sqrt", "linear"]

CostOf = Callable[[int], float]
"""Compute of one sample of size B pixels, in any unit."""

FULL = Stage(ends_at=1.0)


class CurriculumSettings(Settings):
    """What the experiment file says of a curriculum; `method` names it."""

    inputs: ClassVar[frozenset[str]] = frozenset({"images"})
    """What it can show a part of: "images", or "sequences" of tokens."""

    method: str
    kernel: Kernel = Field(
        "fourier",
        description="How an image is reduced to the stage's size: `fourier` crops its spectrum, `aligned` "
        "does so on half-pixel centres (it commutes with flips), `resize` is Lanczos with anti-aliasing.",
    )
    cost: Literal["area", "flops"] = Field(
        "area",
        description="What a sample of size B costs relative to one of size N: `area` is (B/N)^2, `flops` is "
        "measured on the model before the run.",
    )
    lr_rule: LearningRateRule = Field(
        "sqrt",
        description="How the learning rate grows with the batch in stages whose batch factor is above 1.",
    )

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """The stages for images of size `image_size`, in order; the last one shows them in full.

        Args:
            image_size: N, the image size of the model's full input in pixels.
            stride: sizes are rounded up to a multiple of it: what the model's patches or windows divide.
            model: name of the model, for settings that depend on its family.
            cost_of: compute of one sample of size B, in any unit; its area where it is not given.

        Raises:
            UserError: if the stages cannot be laid out for this size.
        """
        raise NotImplementedError


class ShrinkingInput(CurriculumSettings):
    """A curriculum whose early stages show smaller inputs, and may use what these leave free.

    EfficientTrain++ (Wang et al., TPAMI 2024, https://arxiv.org/abs/2405.08768) names two techniques: while samples
    are cheap, the loader has to deliver more of them (answered by showing each one several times), and a device
    that a batch of full inputs fills is left half empty (answered by larger batches).
    """

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


def input_size(ratio: float, image_size: int, stride: int) -> int:
    """The image size in pixels of a bandwidth given as a fraction of the image: a multiple of `stride`, at most N.

    Rounded up, unless the multiple below is missed by less than a quarter of a stride; so .43, .71 and .86
    mean what the papers use at 224 (96, 160, 192), and 16/24/28 at 32 pixels, 28/48/56 at 64.
    """
    return min(image_size, stride * max(1, math.ceil(ratio * image_size / stride - 0.25)))


def relative_cost(size: int, image_size: int, cost_of: CostOf | None) -> float:
    """Compute of a sample of size `size` as a fraction of one of size `image_size`."""
    if cost_of is None:
        return (size / image_size) ** 2
    return cost_of(size) / cost_of(image_size)


def lay_out(stages: Sequence[Stage], fractions: Sequence[float]) -> tuple[Stage, ...]:
    """Give each stage its fraction of the compute (in any unit); neighbours that do not differ become one."""
    ends = [end / sum(fractions) for end in accumulate(fractions)]
    ends[-1] = 1.0
    placed = [replace(stage, ends_at=end) for stage, end in zip(stages, ends, strict=True)]
    following = [*placed[1:], None]
    return tuple(
        stage
        for stage, after in zip(placed, following, strict=True)
        if after is None or replace(stage, ends_at=after.ends_at) != after
    )


def times_smaller(size: int, image_size: int) -> int:
    """How many samples of size `size` take the memory of one of size `image_size`, with 5 % to spare.

    The slack makes two samples of size 160 fit the place of one of size 224, which they exceed by 2 %.
    """
    return int(1.05 * (image_size / size) ** 2)


def scaled_lr(factor: float, rule: LearningRateRule) -> float:
    """What to multiply the learning rate by for a batch `factor` times the base batch. An average of the weights
    whose decay follows progress, as the engine's does, needs no such rule.

    Linear for SGD (Goyal et al., 2017, https://arxiv.org/abs/1706.02677), the square root for Adam and its
    kin (Malladi et al., 2022, https://arxiv.org/abs/2205.10287).
    """
    return {"constant": 1.0, "sqrt": math.sqrt(factor), "linear": float(factor)}[rule]
