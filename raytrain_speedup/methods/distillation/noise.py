"""The control: Gaussian noise with the data's mean and std. What does a teacher teach on that?"""

from __future__ import annotations

from typing import Literal

import torch

from raytrain_speedup.methods.distillation import workers
from raytrain_speedup.methods.distillation.base import Problem, Synthesis, SynthesisSettings, Synthesizer
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.randomness import LATENT


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
