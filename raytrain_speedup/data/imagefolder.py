"""Folders of image files, one folder for each class, as ImageNet is usually unpacked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import Augment, CorruptSample, Dataset, DataSettings, Source
from raytrain_speedup.data.decode import decode
from raytrain_speedup.settings import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def is_image(name: str) -> bool:
    """Whether a file's suffix is that of an image."""
    return Path(name).suffix.lower() in _SUFFIXES


class ImageFolderSettings(DataSettings):
    """`root`/train/CLASS/FILE and `root`/test/CLASS/FILE, and `root`/val if the data have such a split."""

    source: Literal["imagefolder"] = "imagefolder"
    root: Path = Field(description="folder with train/, test/ and perhaps val/, each with one folder a class")
    image_size: int = Field(224, ge=4, le=2048, description="side in pixels of the square the network sees")
    augment: Augment = Field(
        "random-resized-crop", description="crop: shift by up to `padding`; crop-flip: and mirror"
    )

    def read(self) -> Dataset:
        splits = {name: self.root / name for name in ("train", "val", "test")}
        if not splits["val"].is_dir():
            del splits["val"]
        class_names = _class_names(splits["train"])
        sources = {name: _scan(folder, class_names) for name, folder in splits.items()}
        return Dataset(sources["train"], sources["test"], class_names, val=sources.get("val"))


class FolderSource(Source):
    """Image files, sorted by class and name.

    Args:
        folder: of the split.
        files: (N,) paths relative to it, as one NumPy array of bytes: no Python object per sample.
        targets: (N,) int64.
    """

    def __init__(self, folder: Path, files: np.ndarray, targets: np.ndarray) -> None:
        self.folder, self.files, self.targets = folder, files, targets

    def encoded(self, index: int) -> bytes:
        try:
            return Path(self.locate(index)).read_bytes()
        except OSError as error:
            raise CorruptSample(index, self.locate(index), error.strerror or str(error)) from None

    def decode(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), self, index)

    def locate(self, index: int) -> str:
        return str(self.folder / os.fsdecode(self.files[index]))


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(
            f"data.root: there is no folder {folder.absolute()}; expected train/ and test/ in data.root"
        )
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if not names:
        raise UserError(f"data.root: {folder.absolute()} is empty; expected one folder for each class")
    return names


def _scan(folder: Path, class_names: tuple[str, ...]) -> FolderSource:
    """The image files of a split.

    Raises:
        UserError: if the folder is missing or has a class that the training data have not.
    """
    found = _class_names(folder)
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise UserError(
            f"data.root: {folder.absolute()} has the class '{unknown[0]}', which train/ has not; "
            f"expected some of its {len(class_names)} classes"
        )
    files: list[bytes] = []
    counts = np.zeros(len(class_names), dtype=np.int64)
    for target, name in enumerate(class_names):
        before = len(files)
        for parent, folders, leaves in os.walk(folder / name):
            folders.sort()
            inside = Path(parent).relative_to(folder)
            files += [os.fsencode(inside / leaf) for leaf in sorted(leaves) if is_image(leaf)]
        counts[target] = len(files) - before
    return FolderSource(folder, np.array(files, dtype=bytes), np.repeat(np.arange(len(class_names)), counts))
