"""Pruning: which samples does an epoch show? A new method is one file here and one line in `PRUNERS`."""

from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner, PrunerSettings, equal_epochs
from raytrain_speedup.methods.pruning.dynamic_random import DynamicRandom, DynamicRandomSettings
from raytrain_speedup.methods.pruning.full_data import (
    FewerEpochs,
    FewerEpochsSettings,
    FullData,
    NoPruningSettings,
)
from raytrain_speedup.methods.pruning.infobatch import InfoBatch, InfoBatchSettings
from raytrain_speedup.methods.pruning.shard import Shard, constant_offsets, rank_bounds, shard
from raytrain_speedup.registry import Registry

PRUNERS = Registry(
    PrunerSettings,
    tag="method",
    group="raytrain_speedup.pruning",
    entries={
        "none": NoPruningSettings,
        "infobatch": InfoBatchSettings,
        "random": DynamicRandomSettings,
        "epochs": FewerEpochsSettings,
    },
)

__all__ = [
    "PRUNERS",
    "DynamicRandom",
    "DynamicRandomSettings",
    "EpochPlan",
    "FewerEpochs",
    "FewerEpochsSettings",
    "FullData",
    "InfoBatch",
    "InfoBatchSettings",
    "NoPruningSettings",
    "Pruner",
    "PrunerSettings",
    "Shard",
    "constant_offsets",
    "equal_epochs",
    "rank_bounds",
    "shard",
]
