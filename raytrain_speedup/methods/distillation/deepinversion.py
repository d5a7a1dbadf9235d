"""DeepInversion: pixels themselves are optimised, two thousand steps for every batch.

Yin et al., "Dreaming to Distill: Data-Free Knowledge Transfer via DeepInversion", CVPR 2020,
https://arxiv.org/abs/1912.08795; with `adv` > 0 its adaptive form (ADI). Nothing is learnt from one batch to
the next, which is the cost that FastDFKD removes.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.distillation import losses, workers
from raytrain_speedup.methods.distillation.base import Problem, Synthesis, SynthesisSettings, Synthesizer
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.methods.distillation.synthesis import Keep, Score, descend
from raytrain_speedup.randomness import LATENT


class DeepInversionSettings(SynthesisSettings):
    """DeepInversion (Yin et al. 2020): optimise the pixels of every batch from noise."""

    method: Literal["deepinversion"] = "deepinversion"
    steps: int = Field(2000, ge=1, description="steps per batch")
    lr: float = Field(
        0.05, gt=0, description="learning rate of the pixels (Adam), in units of their standard deviation"
    )
    bn: float = Field(10.0, ge=0, description="weight of the batch-norm statistics loss")
    oh: float = Field(1.0, ge=0, description="weight of the class loss; there is none in segmentation")
    adv: float = Field(0.0, ge=0, description="weight of the competition loss 1 - JS, after the warm-up")
    tv: float = Field(1e-3, ge=0, description="weight of the total variation")
    l2: float = Field(0.0, ge=0, description="weight of the mean squared pixel")
    keep: Keep = Field("best", description="store the best batch rendered after a step, or the last")

    @property
    def needs_batch_norm(self) -> bool:
        return self.bn > 0

    def make(self, problem: Problem) -> DeepInversion:
        return DeepInversion(self, problem)


class DeepInversion(Synthesizer):
    """Batches of pixels, each optimised from noise; workers share nothing."""

    def __init__(self, settings: DeepInversionSettings, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem

    def synthesize(self, call: int) -> Synthesis:
        how, problem = self.settings, self.problem
        rng = problem.rng(LATENT, call, workers.rank())
        shape = (how.batch_size, *problem.image_shape)
        pixels = torch.randn(shape, generator=rng, device=problem.device).requires_grad_()
        target = torch.randint(problem.num_classes, (how.batch_size,), generator=rng, device=problem.device)
        images, last = descend(
            lambda: (problem.mean + problem.std * pixels).clamp(0, 1),
            lambda images: self.score(images, target, rng, call),
            torch.optim.Adam([pixels], lr=how.lr, betas=(0.5, 0.9), fused=True),
            steps=how.steps,
            keep=how.keep,
        )
        return Synthesis(to_uint8(images), last.metrics())

    def score(self, images: Tensor, target: Tensor, rng: torch.Generator, call: int) -> Score:
        """The loss of images in [0, 1]: bn + oh + adv and two priors on the pixels, each weighted."""
        how, problem = self.settings, self.problem
        view = problem.look(images, how.augment, rng)
        seen, probe = view.teacher, problem.probe
        pixels = problem.normalise(images)
        terms = {"tv": how.tv * losses.total_variation(pixels), "l2": how.l2 * pixels.square().mean()}
        if how.bn:
            learnt = probe.running_mean, probe.running_var
            terms["bn"] = how.bn * losses.bn_loss(seen.mean, seen.var, *learnt, probe.sizes)
        if how.oh and not problem.dense:
            terms["oh"] = how.oh * losses.class_loss(seen.logits, target)
        if how.adv and call >= how.warmup:
            terms["adv"] = how.adv * losses.competition_loss(seen.logits, view.student_logits())
        return Score(terms, view)
