"""One generator trained against the student: what DAFL, ZSKT, DFAD and DFQ share.

Each call takes some generator steps on fresh latent codes and renders fresh batches for the student; images
of earlier calls are not kept. The methods differ in their loss and in how often each side moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import workers
from raytrain_speedup.methods.distillation.base import (
    Problem,
    Synthesis,
    SynthesisSettings,
    Synthesizer,
    View,
)
from raytrain_speedup.methods.distillation.generator import Architecture, build_generator
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.methods.distillation.rng import INITIALISE, LATENT
from raytrain_speedup.methods.distillation.synthesis import Score


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
