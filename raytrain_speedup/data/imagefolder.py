"""Folders of image files, one folder for each class, as ImageNet is usually unpacked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import Augment, CorruptSample, Dataset, DataSettings, Source
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.folders import (
    image_files,
    is_folder,
    listed,
    shown,
    some,
    split_folders,
    tell_left_out,
)
from raytrain_speedup.data.skipped import log
from raytrain_speedup.settings import UserError

_KEY = "data.root"


class ImageFolderSettings(DataSettings):
    """`root`/train/CLASS/FILE and `root`/test/CLASS/FILE, and `root`/val if the data have such a split.

    Without test/, or where it has no class folders (ImageNet's has no labels), val/ is the test split.
    """

    source: Literal["imagefolder"] = "imagefolder"
    root: Path = Field(
        description="folder with train/ and test/, each with one folder a class, and perhaps val/; train/ and "
        "val/ alone, as ImageNet is unpacked: then val/ is the test split"
    )
    image_size: int = Field(224, ge=4, le=2048, description="image size the network sees, in pixels")
    augment: Augment = Field(
        "random-resized-crop", description="crop: shift by up to `padding`; crop-flip: and horizontal flip"
    )

    def read(self) -> Dataset:
        folders = {split: self.root / name for split, name in self._split_names().items()}
        classes = _class_folders(folders["train"])
        sources = {split: _scan(folder, classes) for split, folder in folders.items()}
        class_names = tuple(shown(name) for name in classes)
        return Dataset(sources["train"], sources["test"], class_names, val=sources.get("val"))

    def _split_names(self) -> dict[str, str]:
        """The folder's name for every split.

        Raises:
            UserError: if there is none for the training or the test split.
        """
        present = {entry.name for entry in listed(_KEY, self.root) if is_folder(_KEY, entry)}
        labelled = {name for name in {"train", "test", "val"} & present if _class_folders(self.root / name)}
        names = split_folders(labelled.__contains__)
        for name in names.values():
            if name not in labelled:
                raise UserError(
                    f"{_KEY}: there is no folder {name}/ with one folder for each class in "
                    f"{shown(self.root.absolute())}; expected train/ and test/, or train/ and val/"
                )
        for name in sorted(present & {"test", "val"} - labelled):
            log.warning("%s: %s has no class folders in it and is not read", _KEY, shown(self.root / name))
        return names


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
            return self._path(index).read_bytes()
        except OSError as error:
            raise CorruptSample(index, self.locate(index), error.strerror or str(error)) from None

    def decode(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), self, index)

    def locate(self, index: int) -> str:
        return shown(self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.files[index])


def _class_folders(folder: Path) -> list[str]:
    """The names of the folders in the folder of a split, sorted.

    Raises:
        UserError: if one of them cannot be read, or is a link to nothing: its class would be lost.
    """
    entries = listed(_KEY, folder)
    lost = [entry.path for entry in entries if entry.is_symlink() and not Path(entry.path).exists()]
    if lost:
        raise UserError(
            f"{_KEY}: {some(lost)} leads to nothing; expected the folder of a class behind the link"
        )
    return [entry.name for entry in entries if is_folder(_KEY, entry)]


def _scan(folder: Path, classes: list[str]) -> FolderSource:
    """The image files of a split.

    Raises:
        UserError: if it has a class that the training data have not, or a folder that cannot be read.
    """
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(
            f"{_KEY}: {shown(folder.absolute())} has the class '{shown(unknown[0])}', which train/ has not; "
            f"expected some of its {len(classes)} classes"
        )
    files: list[bytes] = []
    others = [entry.path for entry in listed(_KEY, folder) if not is_folder(_KEY, entry)]
    counts = np.zeros(len(classes), dtype=np.int64)
    outside = len(os.fsencode(folder)) + 1
    for target, name in enumerate(classes):
        before = len(files)
        if is_folder(_KEY, folder / name):
            found = image_files(_KEY, str(folder / name), others)
            files += [os.fsencode(path)[outside:] for path in found]
        counts[target] = len(files) - before
    tell_left_out(_KEY, folder, others)
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        log.warning(
            "%s: %d of the %d classes have no image in %s: %s",
            _KEY,
            len(empty),
            len(classes),
            shown(folder),
            some(empty),
        )
    return FolderSource(folder, np.array(files, dtype=bytes), np.repeat(np.arange(len(classes)), counts))
