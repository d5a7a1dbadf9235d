"""The distillation axis: training without data, from what a teacher remembers of it."""

from raytrain_speedup.methods.distillation.base import Synthesis, SynthesisSettings, Synthesizer
from raytrain_speedup.methods.distillation.cmi import CMISettings
from raytrain_speedup.methods.distillation.controls import NoiseSettings, RealSettings
from raytrain_speedup.methods.distillation.deepinversion import DeepInversionSettings
from raytrain_speedup.methods.distillation.fastdfkd import FastDFKDSettings
from raytrain_speedup.methods.distillation.generative import (
    DAFLSettings,
    DFADSettings,
    DFQSettings,
    ZSKTSettings,
)
from raytrain_speedup.registry import Registry

SYNTHESIZERS = Registry(
    SynthesisSettings,
    tag="method",
    group="raytrain_speedup.distillation",
    entries={
        "fastdfkd": FastDFKDSettings,
        "dafl": DAFLSettings,
        "zskt": ZSKTSettings,
        "dfad": DFADSettings,
        "dfq": DFQSettings,
        "deepinversion": DeepInversionSettings,
        "cmi": CMISettings,
        "noise": NoiseSettings,
        "real": RealSettings,
    },
)

__all__ = ["SYNTHESIZERS", "Synthesis", "SynthesisSettings", "Synthesizer"]
