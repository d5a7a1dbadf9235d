"""One generator trained against the student: DAFL, ZSKT, DFAD and DFQ.

Each call takes some generator steps on fresh latent codes and renders fresh batches for the student; images of
earlier calls are not kept. The methods differ in their loss and in how often each side moves:

- DAFL (Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, https://arxiv.org/abs/1904.01186):
  images the teacher is sure of, strongly activated and evenly spread over the classes. The student has no say
  in them.
- ZSKT (Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019,
  https://arxiv.org/abs/1905.09768): whatever the student gets most wrong; nothing else. As there, the student is
  judged with the statistics of the batch (it is in training mode), the generator's last layer is a batch norm, and
  its gradients are clipped to a norm of 5. What differs: attention transfer needs matching architectures and is
  left out; a sigmoid follows the last norm, since the pool holds bytes; and the generator's rate stays, where the
  paper's follows a cosine (a synthesizer is not told how many calls there will be). A step of the generator updates
  no running statistics of the student.
- DFAD (Fang et al., "Data-Free Adversarial Distillation", 2019, https://arxiv.org/abs/1912.11006): as ZSKT,
  with the mean absolute difference of the logits as divergence, on a logarithmic scale. The paper's student
  minimises the same difference; here every student minimises the engine's distillation loss. As there, the student
  is judged with the statistics of the batch.
- DFQ (Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR-W 2020,
  https://arxiv.org/abs/2005.04136), here for distillation alone: adversarial images that the teacher still
  finds plausible: clear, balanced, with its BN statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import losses, workers
from raytrain_speedup.methods.distillation.base import (
    Problem,
    Synthesis,
    SynthesisSettings,
    Synthesizer,
    View,
)
from raytrain_speedup.methods.distillation.generator import Architecture, build_generator
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.methods.distillation.synthesis import Score
from raytrain_speedup.randomness import INITIALISE, LATENT


class GenerativeSettings(SynthesisSettings):
    """What the generative methods have in common."""

    warmup: int = Field(0, ge=0, description="calls without student steps")
    student_steps: int = Field(5, ge=1, description="distillation steps after each call")
    temperature: float = Field(1.0, gt=0, description="temperature of the distillation loss")
    generator_steps: int = Field(1, ge=1, description="generator steps per call")
    batches: int = Field(
        5, ge=1, description="fresh batches per call; the student sees these and no older ones"
    )
    lr_g: float = Field(1e-3, gt=0, description="learning rate of the generator (Adam)")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the generator's gradient")
    output_norm: bool = Field(False, description="a batch norm before the generator's sigmoid")
    generator: Architecture = Field(
        "small", description="small: CIFAR, 8 to 64 pixels; deep: ImageNet, latent maps"
    )
    width: int = Field(64, ge=1, description="channels before the generator's last layer")
    latent: int = Field(256, ge=1, description="channels of a latent code")

    @property
    def pool_capacity(self) -> int:
        return self.batches * self.batch_size

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        """The weighted terms of the generator's loss, by name."""
        raise NotImplementedError

    def make(self, problem: Problem) -> GenerativeSynthesizer:
        return GenerativeSynthesizer(self, problem)


class GenerativeSynthesizer(Synthesizer):
    """A generator and its Adam; on several workers gradients are averaged, as in data-parallel training."""

    def __init__(self, settings: GenerativeSettings, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem
        self.generator = build_generator(
            settings.generator,
            problem.image_shape,
            width=settings.width,
            latent=settings.latent,
            rng=problem.rng(INITIALISE),
            output_norm=settings.output_norm,
        )
        self._weights = list(self.generator.parameters())
        self.optimizer = torch.optim.Adam(self._weights, lr=settings.lr_g, fused=True)

    def synthesize(self, call: int) -> Synthesis:
        rng = self.problem.rng(LATENT, call, workers.rank())
        for _ in range(self.settings.generator_steps):
            scored = self.score(self._render(rng), rng)
            gradients = workers.average(torch.autograd.grad(scored.loss, self._weights))
            for parameter, gradient in zip(self._weights, gradients, strict=True):
                parameter.grad = gradient
            if self.settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._weights, self.settings.clip_norm)
            self.optimizer.step()
        with torch.no_grad():
            images = torch.cat([to_uint8(self._render(rng)) for _ in range(self.settings.batches)])
        return Synthesis(images, scored.metrics())

    def score(self, images: Tensor, rng: torch.Generator) -> Score:
        """The generator's loss on images in [0, 1]."""
        view = self.problem.look(images, self.settings.augment, rng)
        return Score(self.settings.terms(view, self.problem), view)

    def _render(self, rng: torch.Generator) -> Tensor:
        return self.generator(self.generator.sample_latent(self.settings.batch_size, rng))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])


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


class DFADSettings(GenerativeSettings):
    """DFAD (Fang et al. 2019): the largest difference of logits; 1 generator step to 5 of the student."""

    method: Literal["dfad"] = "dfad"
    adv: float = Field(1.0, gt=0, description="weight of the discrepancy loss")

    def terms(self, view: View, problem: Problem) -> dict[str, Tensor]:
        student = view.student_logits(batch_statistics=True)
        return {"adv": self.adv * losses.discrepancy_loss(view.teacher.logits, student)}


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
