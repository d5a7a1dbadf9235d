"""ZSKT: the generator seeks whatever the student gets most wrong; nothing else.

Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019,
https://arxiv.org/abs/1905.09768. As there, the student is judged with the statistics of the batch (it is in
training mode), the generator's last layer is a batch norm, and its gradients are clipped to a norm of 5. What
differs: attention transfer needs matching architectures and is left out; a sigmoid follows the last norm, since
the pool holds bytes; and the generator's rate stays, where the paper's follows a cosine (a synthesizer is not told
how many calls there will be). A step of the generator updates no running statistics of the student.
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
    clip_norm: float | None = Field(5.0, gt=0, description="largest norm of the generator's gradient")
    output_norm: bool = Field(True, description="a batch norm before the generator's sigmoid")
    adv: float = Field(1.0, gt=0, description="weight of the adversarial loss")

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        student = view.student_logits(batch_statistics=True)
        return {"adv": self.adv * losses.adversarial_loss(view.teacher.logits, student)}
