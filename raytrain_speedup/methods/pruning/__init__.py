"""Pruning: which samples does an epoch show? A new method is one file here and one line in `PRUNERS`."""

from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner, PrunerSettings, Rescale, equal_epochs
from raytrain_speedup.methods.pruning.coreset import DatasetQuantization, DQSettings
from raytrain_speedup.methods.pruning.dynamic_random import DynamicRandom, DynamicRandomSettings
from raytrain_speedup.methods.pruning.full_data import (
    FewerEpochs,
    FewerEpochsSettings,
    FullData,
    NoPruningSettings,
)
from raytrain_speedup.methods.pruning.infobatch import InfoBatch, InfoBatchSettings
from raytrain_speedup.methods.pruning.orderdp import OrderDP, OrderDPSettings
from raytrain_speedup.methods.pruning.rs2 import RS2, RS2Settings
from raytrain_speedup.methods.pruning.seta import SeTa, SeTaSettings
from raytrain_speedup.methods.pruning.shard import Shard, constant_offsets, rank_bounds, shard
from raytrain_speedup.methods.pruning.static import (
    EL2N,
    DynUnc,
    DynUncSettings,
    EL2NSettings,
    Forgetting,
    ForgettingSettings,
)
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
        "rs2": RS2Settings,
        "orderdp": OrderDPSettings,
        "seta": SeTaSettings,
        "el2n": EL2NSettings,
        "forgetting": ForgettingSettings,
        "dyn-unc": DynUncSettings,
        "dq": DQSettings,
    },
)

__all__ = [
    "EL2N",
    "PRUNERS",
    "RS2",
    "DQSettings",
    "DatasetQuantization",
    "DynUnc",
    "DynUncSettings",
    "DynamicRandom",
    "DynamicRandomSettings",
    "EL2NSettings",
    "EpochPlan",
    "FewerEpochs",
    "FewerEpochsSettings",
    "Forgetting",
    "ForgettingSettings",
    "FullData",
    "InfoBatch",
    "InfoBatchSettings",
    "NoPruningSettings",
    "OrderDP",
    "OrderDPSettings",
    "Pruner",
    "PrunerSettings",
    "RS2Settings",
    "Rescale",
    "SeTa",
    "SeTaSettings",
    "Shard",
    "constant_offsets",
    "equal_epochs",
    "rank_bounds",
    "shard",
]
