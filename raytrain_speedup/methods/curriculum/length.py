"""A curriculum of sequence lengths: the end of each sample first, and more and more of what comes before it.

EfficientTrain begins with what is cheap to show of an image. Of a prompt and its answer that is the answer and what
stands right before it: a stage of length B shows the last B tokens of every sample, so that there is always
something to learn and to score, and only the context that reaches furthest back is left to later stages. The length
grows in equal steps over the first part of the compute, as in sequence length warmup (Li, Zhang and He, "The
Stability-Efficiency Dilemma", NeurIPS 2022, https://arxiv.org/abs/2108.06084), which cuts pre-training texts at
their end instead; then samples are whole. Its control is the same compute in fewer epochs (`pruning.method:
epochs`).

A row's FLOPs are measured on the network; in a plain loop it costs its fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raytrain_speedup.methods.curriculum.base import (
    CostOf,
    CurriculumSettings,
    Stage,
    input_size,
    lay_out,
)


class LengthCurriculum(CurriculumSettings):
    """Short rows first, and whole samples at the end."""

    inputs: ClassVar[frozenset[str]] = frozenset({"sequences"})
    method: Literal["length"] = "length"
    kernel: Literal["resize"] = Field("resize", description="Not used: tokens are left out, not reduced.")
    cost: Literal["flops"] = Field("flops", description="A row costs its FLOPs, measured before the run.")
    initial_scale: float = Field(0.5, gt=0, le=1, description="First length, as a fraction of the whole row.")
    until: float = Field(0.5, gt=0, lt=1, description="Fraction of the compute in which the length grows.")
    steps: int = Field(3, ge=1, le=64, description="Stages of equal compute in which it does.")

    def stages(
        self, image_size: int, *, stride: int = 4, model: str = "", cost_of: CostOf | None = None
    ) -> Sequence[Stage]:
        """Stages of lengths that grow to `image_size` tokens, and one of whole rows."""
        growth = (1 - self.initial_scale) / self.steps
        ratios = [*(self.initial_scale + growth * step for step in range(self.steps)), 1.0]
        cost_of = cost_of or float
        sizes = [input_size(ratio, image_size, stride) for ratio in ratios]
        stages = [Stage(ends_at=1.0, size=size, cost=cost_of(size) / cost_of(image_size)) for size in sizes]
        return lay_out(stages, [*[self.until / self.steps] * self.steps, 1 - self.until])
