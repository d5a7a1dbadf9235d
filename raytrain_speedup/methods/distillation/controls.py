"""What a method without data is judged against: images of noise, and the training images themselves.

Both go through the same pool, augmentation, steps and loss as any method. What a teacher teaches on Gaussian
noise is what a method has to beat. Distillation on the teacher's own data (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531) is what it strives for: what the student loses against that, it loses by the
images.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from raytrain_speedup.methods.distillation import workers
from raytrain_speedup.methods.distillation.base import (
    Problem,
    RealImages,
    Synthesis,
    SynthesisSettings,
    Synthesizer,
)
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.randomness import LATENT, ORDER, torch_generator
from raytrain_speedup.settings import UserError


class NoiseSettings(SynthesisSettings):
    """Noise images: what a method has to beat."""

    method: Literal["noise"] = "noise"

    def make(self, problem: Problem) -> Noise:
        return Noise(self, problem)


class Noise(Synthesizer):
    """Independent Gaussian pixels, clipped to [0, 1]."""

    def __init__(self, settings: NoiseSettings, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem

    def synthesize(self, call: int) -> Synthesis:
        rng, problem = self.problem.rng(LATENT, call, workers.rank()), self.problem
        shape = (self.settings.batch_size, *problem.image_shape)
        noise = torch.randn(shape, generator=rng, device=problem.device)
        return Synthesis(to_uint8(problem.mean + problem.std * noise))


class RealSettings(SynthesisSettings):
    """Real images: what a method without data strives for. Labels are never read."""

    method: Literal["real"] = "real"

    @model_validator(mode="after")
    def _are_as_they_are(self) -> RealSettings:
        if self.synthesis_scale != 1:
            raise ValueError(
                f"synthesis_scale: {self.synthesis_scale:g} is not allowed; expected 1, for real images are not "
                "synthesised"
            )
        return self

    def make(self, problem: Problem) -> Real:
        if problem.real is None or not problem.real.count:
            raise UserError(
                "distillation.method: 'real' needs training images, and there are none; expected a data set "
                "with a training split, or a method that synthesises"
            )
        return Real(self, problem, problem.real)


class Real(Synthesizer):
    """Every call takes the next images of a random order, and the workers each a part of their own.

    Images that cannot be read are left out of their call.
    """

    def __init__(self, settings: RealSettings, problem: Problem, images: RealImages) -> None:
        self.settings = settings
        self.problem = problem
        self.images = images

    def synthesize(self, call: int) -> Synthesis:
        batch = self.settings.batch_size
        start = (call * workers.world() + workers.rank()) * batch
        return Synthesis(self.images.read(positions(start, batch, self.images.count, self.problem.seed)))


def positions(start: int, length: int, count: int, seed: int) -> Tensor:
    """(length,) places `start` to `start + length` of an endless sequence that shows each of `count` images once
    before any twice: one random order after another."""
    stop = start + length
    first, last = start // count, (stop - 1) // count
    orders = [
        torch.randperm(count, generator=torch_generator("cpu", seed, ORDER, i))
        for i in range(first, last + 1)
    ]
    return torch.cat(orders)[start - first * count : stop - first * count]
