"""The distillation axis: training without data, from what a teacher remembers of it."""

from raytrain_speedup.methods.distillation.base import Problem, Synthesis, SynthesisSettings, Synthesizer
from raytrain_speedup.methods.distillation.fastdfkd import FastDFKDSettings

SYNTHESIZERS: dict[str, type[SynthesisSettings]] = {
    "fastdfkd": FastDFKDSettings,
}

__all__ = ["SYNTHESIZERS", "Problem", "Synthesis", "SynthesisSettings", "Synthesizer"]
