"""DFAD: as ZSKT, with the mean absolute difference of the logits as divergence, on a logarithmic scale.

Fang et al., "Data-Free Adversarial Distillation", 2019, https://arxiv.org/abs/1912.11006. The paper's student
minimises the same difference; here every student minimises the engine's distillation loss. As there, the student
is judged with the statistics of the batch (it is in training mode).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.base import Problem, View
from raytrain_speedup.methods.distillation.generative import GenerativeSettings


class DFADSettings(GenerativeSettings):
    """DFAD (Fang et al. 2019): the largest difference of logits; 1 generator step to 5 of the student."""

    method: Literal["dfad"] = "dfad"
    adv: float = Field(1.0, gt=0, description="weight of the discrepancy loss")

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        student = view.student_logits(batch_statistics=True)
        return {"adv": self.adv * losses.discrepancy_loss(view.teacher.logits, student)}
