"""Data: sources, the split, decoding, augmentation and two loaders with one interface.

A new source is one file with a `DataSettings` subclass and one line in `SOURCES`.
"""

from __future__ import annotations

import torch

from raytrain_speedup.data.base import (
    IGNORE_INDEX,
    CorruptSample,
    Dataset,
    DataSettings,
    Source,
    Splits,
    Subset,
    fingerprint,
)
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.data.cifar import Cifar10Settings, Cifar100Settings
from raytrain_speedup.data.decode import read
from raytrain_speedup.data.device_loader import DeviceLoader
from raytrain_speedup.data.digits import DigitsSettings
from raytrain_speedup.data.imagefolder import ImageFolderSettings
from raytrain_speedup.data.indexed import IndexedSettings
from raytrain_speedup.data.loader import Loader
from raytrain_speedup.data.masks import MaskFolderSettings, ParquetMasksSettings
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.data.probe import check_readable
from raytrain_speedup.data.python import PythonSettings
from raytrain_speedup.data.split import balanced_split
from raytrain_speedup.data.worker_loader import WorkerLoader
from raytrain_speedup.methods.curriculum.base import Kernel
from raytrain_speedup.registry import Registry
from raytrain_speedup.settings import UserError

__all__ = [
    "IGNORE_INDEX",
    "SOURCES",
    "Batch",
    "DataSettings",
    "Loader",
    "Source",
    "Splits",
    "Step",
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
        "index": IndexedSettings,
        "python": PythonSettings,
    },
)


def open_data(settings: DataSettings, *, seed: int) -> Splits:
    """Open a source and carve the validation split where it has none of its own.

    Args:
        seed: the training seed; it only matters where `settings.split_seed` is null.

    Raises:
        UserError: for whatever is missing or malformed, naming the key or file.
    """
    data = settings.read()
    _check(settings, data)
    train, val = data.train, data.val
    if val is None:
        split_seed = seed if settings.split_seed is None else settings.split_seed
        stay, aside = balanced_split(train.targets, settings.val_fraction, split_seed)
        train, val = Subset(data.train, stay), Subset(data.train, aside)
    size = settings.image_size or _stored_size(settings, train)
    return Splits(
        train=train,
        val=val,
        test=data.test,
        num_classes=len(data.class_names),
        channels=data.channels,
        image_size=size,
        class_names=data.class_names,
        fingerprint=fingerprint(settings.source, (train, val, data.test), size),
    )


def build_loader(
    splits: Splits,
    settings: DataSettings,
    *,
    device: torch.device | str,
    seed: int,
    rank: int = 0,
    world: int = 1,
    channels_last: bool = False,
    kernel: Kernel = "fourier",
) -> Loader:
    """The loader `settings.loader` asks for; `auto` takes the device loader where the decoded images fit.

    Args:
        seed: of the augmentation.
        rank, world: this worker among all that train together.
        channels_last: memory format of the inputs.
        kernel: how a curriculum's stage lowers the bandwidth of a batch.
    """
    kind = settings.loader
    if kind == "auto":
        kind = "device" if _fits(splits, settings) else "workers"
    loader: type[Loader] = DeviceLoader if kind == "device" else WorkerLoader
    return loader(
        splits,
        settings,
        device=device,
        seed=seed,
        rank=rank,
        world=world,
        channels_last=channels_last,
        kernel=kernel,
    )


def _fits(splits: Splits, settings: DataSettings) -> bool:
    """Whether the decoded sets fit the limit, and whether decoding once to one size loses nothing: neither a
    crop's resolution, nor what is done to single images."""
    samples = len(splits.train) + len(splits.val) + len(splits.test)
    size = samples * splits.image_size**2 * (splits.channels + splits.dense)
    whole = splits.train.fixed_size() == (splits.image_size, splits.image_size)
    crops = settings.augment == "random-resized-crop"
    return size <= settings.memory_limit_gb * 1e9 and (whole or not crops) and not settings.randaugment


def _check(settings: DataSettings, data: Dataset) -> None:
    for key in ("mean", "std"):
        found = getattr(settings, key)
        if len(found) != data.channels:
            raise UserError(
                f"data.{key}: {found} has {len(found)} values; expected {data.channels}, one a channel"
            )
    if not all(std > 0 for std in settings.std):
        raise UserError(f"data.std: {settings.std} is not allowed; expected values above 0")
    for key, source in (("train", data.train), ("test", data.test)):
        if not len(source):
            raise UserError(f"data.{key}: there are no samples in it; expected at least one")


def _stored_size(settings: DataSettings, source: Source) -> int:
    """The size of the first readable image: the size of the experiment where none is asked for."""
    reasons = []
    for index in range(min(len(source), 100)):
        try:
            first = read(source, index)
        except CorruptSample as error:
            reasons.append(str(error))
            continue
        if first.height != first.width or first.height > 128:
            raise UserError(
                f"data.image_size: not set, and {source.locate(index)} is {first.width} x {first.height} "
                "pixels; expected an image size in pixels for images that are not small squares, such as 224"
            )
        return first.height
    raise UserError(f"data.train: none of the first {len(reasons)} images can be read: {reasons[0]}")
