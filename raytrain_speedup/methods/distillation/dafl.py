"""DAFL: images the teacher is sure of, strongly activated and evenly spread over the classes.

Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, https://arxiv.org/abs/1904.01186. The
student has no say in what is generated.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.base import Problem, View
from raytrain_speedup.methods.distillation.generative import GenerativeSettings


class DAFLSettings(GenerativeSettings):
    """DAFL (Chen et al. 2019): confident, active, balanced images; 1 generator step to 5 of the student."""

    method: Literal["dafl"] = "dafl"
    oh: float = Field(1.0, ge=0, description="weight of the confidence loss")
    act: float = Field(0.1, ge=0, description="weight of the activation loss")
    balance: float = Field(5.0, ge=0, description="weight of the class-balance loss")

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        seen = view.teacher
        return {
            "oh": self.oh * losses.confidence_loss(seen.logits),
            "act": self.act * losses.activation_loss(seen.features),
            "balance": self.balance * losses.balance_loss(seen.logits),
        }
