"""DFQ: adversarial images that the teacher still finds plausible: clear, balanced, with its BN statistics.

Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR-W 2020,
https://arxiv.org/abs/2005.04136, used here for distillation alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.base import Problem, View
from raytrain_speedup.methods.distillation.generative import GenerativeSettings


class DFQSettings(GenerativeSettings):
    """DFQ (Choi et al. 2020): adversarial, with the teacher's statistics, confidence and class balance."""

    method: Literal["dfq"] = "dfq"
    adv: float = Field(1.0, ge=0, description="weight of the adversarial loss")
    bn: float = Field(1.0, ge=0, description="weight of the batch-norm statistics loss")
    oh: float = Field(1.0, ge=0, description="weight of the confidence loss")
    balance: float = Field(1.0, ge=0, description="weight of the class-balance loss")

    @property
    def needs_batch_norm(self) -> bool:
        return self.bn > 0

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        seen, probe = view.teacher, problem.probe
        terms = {
            "adv": self.adv * losses.adversarial_loss(seen.logits, view.student_logits()),
            "oh": self.oh * losses.confidence_loss(seen.logits),
            "balance": self.balance * losses.balance_loss(seen.logits),
        }
        if self.bn:
            learnt = probe.running_mean, probe.running_var
            terms["bn"] = self.bn * losses.bn_loss(seen.mean, seen.var, *learnt, probe.sizes)
        return terms
