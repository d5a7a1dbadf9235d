"""CMI: a fresh generator for every batch, and a contrast with earlier images so that none repeats another.

Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021,
https://arxiv.org/abs/2105.08584. An image is described by the mean of every input channel of the teacher's BN
layers, standardised by what the teacher learnt and embedded by a small head that is trained along; the bank
holds the descriptions, so old images are always seen through the present head.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import losses, workers
from raytrain_speedup.methods.distillation.augment import Augment
from raytrain_speedup.methods.distillation.base import (
    Problem,
    Synthesis,
    SynthesisSettings,
    Synthesizer,
    View,
)
from raytrain_speedup.methods.distillation.generator import Architecture, build_generator, initialise
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.methods.distillation.synthesis import Keep, Score, descend
from raytrain_speedup.randomness import INITIALISE, LATENT


class CMISettings(SynthesisSettings):
    """CMI (Fang et al. 2021): inversion by a fresh generator, contrasted with a memory bank."""

    method: Literal["cmi"] = "cmi"
    steps: int = Field(500, ge=1, description="steps per batch")
    lr_g: float = Field(1e-3, gt=0, description="learning rate of generator and latent codes (Adam)")
    lr_head: float = Field(1e-2, gt=0, description="learning rate of the embedding head (Adam)")
    bn: float = Field(1.0, ge=0, description="weight of the batch-norm statistics loss")
    oh: float = Field(0.5, ge=0, description="weight of the class loss; there is none in segmentation")
    adv: float = Field(0.5, ge=0, description="weight of the decision-adversarial loss, after the warm-up")
    cr: float = Field(0.8, gt=0, description="weight of the contrastive loss")
    cr_temperature: float = Field(0.2, gt=0, description="temperature of the contrastive loss")
    bank: int = Field(4096, ge=1, description="earlier images that each worker contrasts with")
    embedding: int = Field(128, ge=1, description="dimensions of the embedding")
    zoom: float = Field(0.25, gt=0, le=1, description="smallest fraction of the area in the second view")
    keep: Keep = Field("best", description="store the best batch rendered after a step, or the last")
    generator: Architecture = Field(
        "small", description="small: CIFAR, 8 to 64 pixels; deep: ImageNet, latent maps"
    )
    width: int = Field(64, ge=1, description="channels before the generator's last layer")
    latent: int = Field(256, ge=1, description="channels of a latent code")

    @property
    def needs_batch_norm(self) -> bool:
        return True

    def cost_class(self, call: int) -> Hashable:
        """The bank, which every step embeds, grows until it is full."""
        return call >= self.warmup, min(call * self.batch_size, self.bank)

    def make(self, problem: Problem) -> CMI:
        return CMI(self, problem)


class CMI(Synthesizer):
    """A generator per batch; head and bank live on. Each worker has its own, so nothing is exchanged."""

    def __init__(self, settings: CMISettings, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem
        rng = problem.rng(INITIALISE)
        self._generator = build_generator(
            settings.generator, problem.image_shape, width=settings.width, latent=settings.latent, rng=rng
        )
        channels = len(problem.probe.running_mean)
        with torch.device("meta"):
            self._head = nn.Sequential(
                nn.Linear(channels, settings.embedding),
                nn.ReLU(),
                nn.Linear(settings.embedding, settings.embedding),
            )
        initialise(self._head.to_empty(device=problem.device), rng)
        self._bank = torch.zeros(0, channels, device=problem.device)
        self._local = Augment(crop=0, flip=settings.augment.flip, zoom=settings.zoom)

    def synthesize(self, call: int) -> Synthesis:
        how, problem = self.settings, self.problem
        rng = problem.rng(LATENT, call, workers.rank())
        initialise(self._generator, rng)
        z = self._generator.sample_latent(how.batch_size, rng).requires_grad_()
        target = torch.randint(problem.num_classes, (how.batch_size,), generator=rng, device=problem.device)
        images, last = descend(
            lambda: self._generator(z),
            lambda images: self.score(images, target, rng, call),
            torch.optim.Adam(
                [
                    {"params": [*self._generator.parameters(), z], "lr": how.lr_g},
                    {"params": self._head.parameters(), "lr": how.lr_head},
                ],
                betas=(0.5, 0.999),
                fused=True,
            ),
            steps=how.steps,
            keep=how.keep,
        )
        with torch.no_grad():
            plain = problem.look(images, Augment(crop=0, flip=False), rng, instances=True)
        self._bank = torch.cat([self._bank, self._describe(plain)])[-how.bank :]
        return Synthesis(to_uint8(images), last.metrics())

    def score(self, images: Tensor, target: Tensor, rng: torch.Generator, call: int) -> Score:
        """The loss of images in [0, 1]: bn + oh + adv + cr, each weighted; cr contrasts two views."""
        how, problem = self.settings, self.problem
        view = problem.look(images, how.augment, rng, instances=True)
        local = problem.look(images, self._local, rng, instances=True)
        seen, probe = view.teacher, problem.probe
        terms = {
            "bn": how.bn
            * losses.bn_loss(seen.mean, seen.var, probe.running_mean, probe.running_var, probe.sizes),
            "cr": how.cr
            * losses.contrastive_loss(
                self._embed(self._describe(view)),
                self._embed(self._describe(local)),
                self._embed(self._bank),
                how.cr_temperature,
            ),
        }
        if how.oh and not problem.dense:
            terms["oh"] = how.oh * losses.class_loss(seen.logits, target)
        if how.adv and call >= how.warmup:
            terms["adv"] = how.adv * losses.decision_adversarial_loss(seen.logits, view.student_logits())
        return Score(terms, view)

    def _describe(self, view: View) -> Tensor:
        """(B, channels): each image's channel means, in units of the teacher's learnt standard deviations."""
        probe = self.problem.probe
        return (view.teacher.instances - probe.running_mean) * (probe.running_var + 1e-5).rsqrt()

    def _embed(self, descriptions: Tensor) -> Tensor:
        return F.normalize(self._head(descriptions), dim=1)

    def state_dict(self) -> dict[str, Any]:
        return {"head": self._head.state_dict(), "bank": self._bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._head.load_state_dict(state["head"])
        self._bank = state["bank"].to(self.problem.device)
