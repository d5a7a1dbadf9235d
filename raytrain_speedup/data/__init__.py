"""Data: sources, the splits, decoding, augmentation, and loaders of images and of texts with one interface.

A new source is one file with a `DataSettings` subclass and one line in `SOURCES`.
"""

from __future__ import annotations

from typing import Any

from raytrain_speedup.data.base import IGNORE_INDEX, DataSettings, Source
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.data.cifar import Cifar10Settings, Cifar100Settings
from raytrain_speedup.data.coco import CocoSettings
from raytrain_speedup.data.device_loader import DeviceLoader
from raytrain_speedup.data.digits import DigitsSettings
from raytrain_speedup.data.folders import ImageFolderSettings
from raytrain_speedup.data.index.indexed import IndexedSettings
from raytrain_speedup.data.instructions import AlpacaSettings
from raytrain_speedup.data.loader import Loader
from raytrain_speedup.data.mask_boxes import ParquetMaskBoxesSettings
from raytrain_speedup.data.masks import MaskFolderSettings, ParquetMasksSettings
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.data.python import PythonSettings
from raytrain_speedup.data.splits import Splits, open_data
from raytrain_speedup.data.token_loader import TokenLoader
from raytrain_speedup.data.toy_instructions import ToyInstructionSettings
from raytrain_speedup.data.unreadable import check_readable
from raytrain_speedup.data.worker_loader import WorkerLoader
from raytrain_speedup.registry import Registry

__all__ = [
    "IGNORE_INDEX",
    "SOURCES",
    "Batch",
    "DataSettings",
    "Loader",
    "Source",
    "Splits",
    "Step",
    "TokenLoader",
    "build_loader",
    "check_readable",
    "open_data",
]

SOURCES = Registry(
    DataSettings,
    tag="source",
    group="raytrain_speedup.data",
    entries={
        "digits": DigitsSettings,
        "cifar10": Cifar10Settings,
        "cifar100": Cifar100Settings,
        "parquet": ParquetSettings,
        "imagefolder": ImageFolderSettings,
        "parquet-masks": ParquetMasksSettings,
        "maskfolder": MaskFolderSettings,
        "coco": CocoSettings,
        "parquet-mask-boxes": ParquetMaskBoxesSettings,
        "index": IndexedSettings,
        "python": PythonSettings,
        "alpaca": AlpacaSettings,
        "toy-instructions": ToyInstructionSettings,
    },
)


def build_loader(splits: Splits, settings: DataSettings, **options: Any) -> Loader:
    """The loader of images that `settings.loader` asks for; `auto` takes the device loader where they fit, decoded.

    Args:
        options: those of `Loader`.
    """
    kind = settings.loader
    if kind == "auto":
        kind = "device" if _fits(splits, settings) else "workers"
    loader: type[Loader] = DeviceLoader if kind == "device" else WorkerLoader
    return loader(splits, settings, **options)


def _fits(splits: Splits, settings: DataSettings) -> bool:
    """Whether the decoded sets fit the limit, and whether decoding once to one size loses nothing: neither a
    crop's resolution, nor what is done to single images."""
    samples = len(splits.train) + len(splits.val) + len(splits.test)
    size = samples * splits.image_size**2 * (splits.channels + splits.dense)
    whole = splits.train.fixed_size() == (splits.image_size, splits.image_size)
    crops = settings.augment == "random-resized-crop"
    return size <= settings.memory_limit_gb * 1e9 and (whole or not crops) and not settings.randaugment
