"""ZSKT: the generator seeks whatever the student gets most wrong; nothing else.

Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019,
https://arxiv.org/abs/1905.09768. Its attention transfer needs matching architectures and is left out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.base import Problem, View
from raytrain_speedup.methods.distillation.generative import GenerativeSettings


class ZSKTSettings(GenerativeSettings):
    """ZSKT (Micaelli and Storkey 2019): adversarial only; 1 generator step, 10 student steps on one batch."""

    method: Literal["zskt"] = "zskt"
    student_steps: int = Field(10, ge=1, description="distillation steps after each call")
    batches: int = Field(
        1, ge=1, description="fresh batches per call; the student sees these and no older ones"
    )
    adv: float = Field(1.0, gt=0, description="weight of the adversarial loss")

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        return {"adv": self.adv * losses.adversarial_loss(view.teacher.logits, view.student_logits())}
