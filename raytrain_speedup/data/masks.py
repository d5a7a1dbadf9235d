"""Images with a mask each: a class for every pixel, as semantic segmentation needs them.

A mask is an image file of the image's size whose values are class numbers (mode L, or P as most tools save
them); two readers of plain images make one of both.
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from raytrain_speedup.data.base import (
    IGNORE_INDEX,
    CorruptSample,
    Dataset,
    DataSettings,
    Source,
    SourceOfImages,
)
from raytrain_speedup.data.decode import reason
from raytrain_speedup.data.folders import (
    FolderSource,
    is_folder,
    is_image,
    listed,
    naming_the_split,
    shown,
    split_folders,
    tell_left_out,
)
from raytrain_speedup.data.parquet import ParquetFilesSettings
from raytrain_speedup.data.parquet_files import PartFiles
from raytrain_speedup.settings import UserError


class MaskSettings(DataSettings):
    """What all data with masks have in common."""

    classes: int | tuple[str, ...] = Field(
        description="the classes: how many, or their names in the order of their numbers in the masks"
    )
    void: int = Field(
        IGNORE_INDEX,
        ge=0,
        le=255,
        description="number in the masks of pixels of no class, neither learnt nor judged",
    )
    fit: Literal["crop", "stretch"] = Field(
        "stretch",
        description="how an image becomes a square: the centre of it (see eval_crop), or all of it, distorted",
    )

    @field_validator("classes")
    @classmethod
    def _fit_a_byte(cls, classes: int | tuple[str, ...]) -> int | tuple[str, ...]:
        count = classes if isinstance(classes, int) else len(classes)
        if not 2 <= count <= IGNORE_INDEX:
            raise ValueError(f"{count} classes; masks of one byte know 2 to {IGNORE_INDEX}")
        return classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for every class: its number where it has none."""
        if isinstance(self.classes, int):
            return tuple(str(number) for number in range(self.classes))
        return self.classes


class ParquetMaskFilesSettings(MaskSettings, ParquetFilesSettings):
    """Images and masks as two columns of Parquet files, whatever is to be found of them."""

    mask_column: str = Field("mask", description="column of masks, likewise: PNG files of class numbers")

    def masked(self, files: PartFiles) -> MaskedSource:
        """The samples of a split."""
        files.require_images("data.mask_column", self.mask_column)
        targets = np.zeros(files.rows, dtype=np.int64)
        images, masks = (files.images(column, targets) for column in (self.image_column, self.mask_column))
        return MaskedSource(images, masks, num_classes=len(self.class_names), void=self.void)


class ParquetMasksSettings(ParquetMaskFilesSettings):
    """The class of every pixel is to be found."""

    source: Literal["parquet-masks"] = "parquet-masks"

    def read(self) -> Dataset:
        sources = {split: self.masked(files) for split, files in self.open_splits().items()}
        return Dataset(sources["train"], sources.get("test"), self.class_names, val=sources.get("val"))


LONG_NAMES = {"train": "training", "val": "validation"}
"""Of splits' folders."""


class MaskFolderSettings(MaskSettings):
    """Two folders of files a split, images and masks of the same names: NYUv2 and Cityscapes-like sets.

    `{split}` in the folder names stands for train, test and, where there is one, val (training and validation,
    in ADE20K). Where test has no masks, as in a benchmark that keeps them back, val is the test split.
    """

    source: Literal["maskfolder"] = "maskfolder"
    root: Path = Field(description="folder above the images and the masks")
    images: str = Field("{split}/images", description="folder of a split's images, inside `root`")
    masks: str = Field(
        "{split}/masks", description="folder of its masks, named as the images but for the suffix"
    )

    _names_the_split = field_validator("images", "masks")(naming_the_split("image/{split}"))

    def read(self) -> Dataset:
        names = split_folders(lambda name: is_folder("data.masks", self._folder("masks", name)))
        sources = {split: self._source(name) for split, name in names.items()}
        return Dataset(sources["train"], sources["test"], self.class_names, val=sources.get("val"))

    def _folder(self, kind: str, split: str) -> Path:
        """Where it is; by the split's short name where it is nowhere."""
        pattern = getattr(self, kind)
        named = [
            self.root / pattern.replace("{split}", name) for name in (split, LONG_NAMES.get(split, split))
        ]
        return next((folder for folder in named if is_folder(f"data.{kind}", folder)), named[0])

    def _files(self, kind: str, split: str) -> dict[str, str]:
        """The image files of a folder, by their names without suffix."""
        folder = self._folder(kind, split)
        if not is_folder(f"data.{kind}", folder):
            raise UserError(
                f"data.{kind}: there is no folder {shown(folder.absolute())}; expected the {kind} of the {split} "
                "split"
            )
        files: dict[str, str] = {}
        entries = listed(f"data.{kind}", folder)
        for name in (entry.name for entry in entries if is_image(entry.name)):
            if other := files.get(Path(name).stem):
                raise UserError(
                    f"data.{kind}: {shown(folder)} has {shown(other)} and {shown(name)}; expected one file of a "
                    "name, whatever its suffix"
                )
            files[Path(name).stem] = name
        tell_left_out(f"data.{kind}", folder, [entry.path for entry in entries if not is_image(entry.name)])
        return files

    def _source(self, split: str) -> MaskedSource:
        images, masks = self._files("images", split), self._files("masks", split)
        if lonely := sorted(images.keys() ^ masks.keys()):
            has, lacks = ("images", "masks") if lonely[0] in images else ("masks", "images")
            raise UserError(
                f"data.{lacks}: {shown(self._folder(lacks, split))} has no '{shown(lonely[0])}', which is in "
                f"{shown(self._folder(has, split))}; expected a mask for every image ({len(lonely)} are alone)"
            )
        targets = np.zeros(len(images), dtype=np.int64)
        pictures, classes = (
            FolderSource(
                self._folder(kind, split), np.array([os.fsencode(n) for n in files.values()]), targets
            )
            for kind, files in (("images", images), ("masks", masks))
        )
        return MaskedSource(pictures, classes, num_classes=len(self.class_names), void=self.void)


class MaskedSource(SourceOfImages):
    """Images, and as many masks in the same order.

    Args:
        images, masks: sources of image files.
        num_classes: of the pixels.
        void: the number in the masks that stands for no class.
    """

    dense = True

    def __init__(self, images: Source, masks: Source, *, num_classes: int, void: int) -> None:
        super().__init__(images)
        self.masks, self.num_classes, self.void = masks, num_classes, void

    def mask(self, index: int) -> np.ndarray:
        try:
            stored = self.masks.encoded(index)
            assert stored is not None, "masks are files"
            with Image.open(io.BytesIO(stored)) as file:
                mask = np.array(file)
        except CorruptSample as error:
            raise self._corrupt(index, error.why) from None
        except Exception as error:  # decoders raise all kinds of exceptions for broken files
            raise self._corrupt(index, reason(error)) from None
        if mask.ndim != 2:
            raise self._corrupt(index, f"has {mask.shape[2]} channels; expected one, of class numbers")
        byte = mask.astype(np.uint8)
        wrong = (byte != mask) | ~self._known[byte]
        if wrong.any():
            raise self._corrupt(
                index,
                f"holds {mask[wrong][0]}; expected 0 to {self.num_classes - 1}, or data.void={self.void}",
            )
        return self._class_of[byte]

    def prepare(self, memory_limit: float) -> None:
        super().prepare(memory_limit)
        self.masks.prepare(memory_limit)

    def _corrupt(self, index: int, why: str) -> CorruptSample:
        return CorruptSample(index, self.locate(index), f"its mask: {why}")

    @cached_property
    def _class_of(self) -> np.ndarray:
        """(256,) uint8: from the numbers of the files to classes."""
        table = np.arange(IGNORE_INDEX + 1, dtype=np.uint8)
        table[self.void] = IGNORE_INDEX
        return table

    @cached_property
    def _known(self) -> np.ndarray:
        """(256,) bool: which numbers may occur."""
        table = np.arange(IGNORE_INDEX + 1) < self.num_classes
        table[self.void] = True
        return table
