"""What a data source is: its settings, and the samples of a split.

A source only knows how to read one sample by its position. Splitting, decoding to a size, augmentation and
batching are the same for all sources and live in their own files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from raytrain_speedup.settings import Settings

Buffer = bytes | memoryview
T = TypeVar("T")
Augment = Literal["none", "crop", "crop-flip", "crop-alternating-flip", "random-resized-crop"]

IGNORE_INDEX = 255
"""The class of a pixel that belongs to none: it is neither learnt from nor judged."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CorruptSample(Exception):
    """A sample that cannot be read.

    Args:
        index: its position in its source.
        where: the file or row, as `Source.locate` names it.
        why: what the decoder said.
    """

    def __init__(self, index: int, where: str, why: str) -> None:
        super().__init__(index, where, why)
        self.index, self.where, self.why = index, where, why

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True)
class Window:
    """What an epoch's order goes by where reads are to be close to each other.

    Attributes:
        stretch: (N,) int64 from 0, in which stretch of the storage each sample lies.
        samples: that are shuffled among each other.
    """

    stretch: np.ndarray
    samples: int


class Source(ABC):
    """The samples of one split, read one at a time by position. Can be sent to another process.

    Attributes:
        targets: (N,) int64, the class of every sample; zeros where its pixels or parts have their own.
        dense: whether every pixel has a class of its own: then `mask` says which.
        max_boxes: the most objects that an image has, where objects are to be found: then `boxes` says where they
            are. 0 otherwise.
    """

    targets: np.ndarray
    dense: bool = False
    max_boxes: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def decode(self, index: int) -> np.ndarray:
        """The whole image, (H, W, C) uint8.

        Raises:
            CorruptSample: if it cannot be read.
        """

    @abstractmethod
    def locate(self, index: int) -> str:
        """The file, or file and row, of a sample: for messages."""

    def encoded(self, index: int) -> Buffer | None:
        """The image as it is stored (a JPEG or PNG file), or None where the source stores plain pixels.

        Raises:
            CorruptSample: if it cannot be read.
        """
        return None

    def encoded_many(self, indices: Sequence[int]) -> list[Buffer | CorruptSample | None]:
        """`encoded` of several samples, or what it raises; a source far away asks for all of them at once."""
        found: list[Buffer | CorruptSample | None] = []
        for index in indices:
            try:
                found.append(self.encoded(index))
            except CorruptSample as error:
                found.append(error)
        return found

    def mask(self, index: int) -> np.ndarray:
        """The class of every pixel of a dense source, (H, W) uint8, `IGNORE_INDEX` where there is none.

        Raises:
            CorruptSample: if it cannot be read, or holds anything that is no class.
        """
        raise NotImplementedError

    def boxes(self, index: int) -> np.ndarray:
        """The objects of an image, (n, 5) float32 with n up to `max_boxes`: left, top, right and bottom in pixels
        of the image, and the label, as `boxes.py` says.

        Raises:
            CorruptSample: if what is written of them makes no sense.
        """
        raise NotImplementedError

    @property
    def bytes_read(self) -> int | None:
        """Bytes that this process has read of it so far; None where a source does not count them."""
        return None

    @property
    def placed(self) -> bool:
        """Whether its targets have a place in the image, and move with it: masks and boxes."""
        return self.dense or self.max_boxes > 0

    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) if every image is known to have that size, else None."""
        return None

    def subset(self, positions: np.ndarray) -> Source:
        """Some of the samples, (n,) int64, renumbered from 0."""
        return Subset(self, positions)

    def window(self) -> Window | None:
        """In which order an epoch goes through it; None where any sample may follow any other."""
        return None

    def content(self) -> bytes:
        """All there is in it beside the targets, where it is little and in memory; else nothing, and a few samples
        have to tell whether two sources are the same."""
        return b""

    def prepare(self, memory_limit: float) -> None:  # noqa: B027 - most sources have nothing to warm up
        """Called once before samples are read in bulk; `memory_limit` in bytes bounds what may be cached."""


class ArraySource(Source):
    """Images that are in memory as one (N, H, W, C) uint8 array."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, name: str) -> None:
        self.images, self.targets, self.name = images, targets.astype(np.int64), name

    def decode(self, index: int) -> np.ndarray:
        return self.images[index]

    def locate(self, index: int) -> str:
        return f"{self.name} image {index}"

    def fixed_size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]


class SourceOfImages(Source):
    """The images of another source, of which more is known: a mask for each, or boxes."""

    def __init__(self, images: Source) -> None:
        self.images, self.targets = images, images.targets

    def decode(self, index: int) -> np.ndarray:
        return self.images.decode(index)

    def encoded(self, index: int) -> Buffer | None:
        return self.images.encoded(index)

    def encoded_many(self, indices: Sequence[int]) -> list[Buffer | CorruptSample | None]:
        return self.images.encoded_many(indices)

    def locate(self, index: int) -> str:
        return self.images.locate(index)

    @property
    def bytes_read(self) -> int | None:
        return self.images.bytes_read

    def fixed_size(self) -> tuple[int, int] | None:
        return self.images.fixed_size()

    def prepare(self, memory_limit: float) -> None:
        self.images.prepare(memory_limit)


class Subset(Source):
    """Some samples of another source, renumbered from 0."""

    def __init__(self, source: Source, positions: np.ndarray) -> None:
        self.source, self.positions = source, positions
        self.targets, self.dense = source.targets[positions], source.dense
        self.max_boxes = source.max_boxes

    def decode(self, index: int) -> np.ndarray:
        return self._renumbered(self.source.decode, index)

    def encoded(self, index: int) -> Buffer | None:
        return self._renumbered(self.source.encoded, index)

    def encoded_many(self, indices: Sequence[int]) -> list[Buffer | CorruptSample | None]:
        found = self.source.encoded_many([int(self.positions[index]) for index in indices])
        return [
            CorruptSample(index, item.where, item.why) if isinstance(item, CorruptSample) else item
            for index, item in zip(indices, found, strict=True)
        ]

    def mask(self, index: int) -> np.ndarray:
        return self._renumbered(self.source.mask, index)

    def boxes(self, index: int) -> np.ndarray:
        return self._renumbered(self.source.boxes, index)

    def _renumbered(self, read: Callable[[int], T], index: int) -> T:
        try:
            return read(int(self.positions[index]))
        except CorruptSample as error:
            raise CorruptSample(index, error.where, error.why) from None

    def locate(self, index: int) -> str:
        return self.source.locate(int(self.positions[index]))

    @property
    def bytes_read(self) -> int | None:
        return self.source.bytes_read

    def fixed_size(self) -> tuple[int, int] | None:
        return self.source.fixed_size()

    def prepare(self, memory_limit: float) -> None:
        self.source.prepare(memory_limit)

    def subset(self, positions: np.ndarray) -> Source:
        return Subset(self.source, self.positions[positions])  # of one table, however often it is cut

    def window(self) -> Window | None:
        whole = self.source.window()
        return whole and Window(whole.stretch[self.positions], whole.samples)


def leaving_out(source: Source, positions: np.ndarray | None) -> Source:
    """The samples of a source but those at some positions, (n,) int64, distinct; itself where there are none."""
    if positions is None or not len(positions):
        return source
    return source.subset(np.setdiff1d(np.arange(len(source)), positions, assume_unique=True))


class DataSettings(Settings):
    """Common part of every `data` section; `source` names the kind of data."""

    source: str
    image_size: int | None = Field(
        None, ge=4, le=2048, description="image size the network sees, in pixels; default: as stored"
    )
    val_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="fraction of the training data set aside for validation, class by class; 0 trains on all of "
        "them (a sweep then sets aside its own `val_fraction`)",
    )
    split_seed: int | None = Field(
        0, ge=0, description="seed of that choice; null: another validation split for every training seed"
    )
    test_fraction: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="fraction of the training data held back as the test split, class by class, where the "
        "data have none of their own; the same samples for every seed",
    )
    augment: Augment = Field(
        "crop-flip",
        description="crop: shift by up to `padding`; crop-flip: and horizontal flip; crop-alternating-flip: the "
        "flip of a sample's first epoch by a coin, then every other one (arXiv 2404.00498); random-resized-crop",
    )
    padding: int | None = Field(
        None,
        ge=0,
        description="reflected border for the crops but the last, in pixels; default: image_size / 8",
    )
    min_scale: float = Field(
        0.08, gt=0, le=1, description="smallest area fraction that random-resized-crop may show"
    )
    cutout: int = Field(0, ge=0, description="size of the square that cutout blanks, in pixels; 0: off")
    erasing: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    randaugment: float = Field(
        0.0,
        ge=0,
        le=10,
        description="RandAugment magnitude (timm's rand-m{}-mstd0.5-inc1) wherever a curriculum gives none; "
        "0: off",
    )
    loader: Literal["auto", "device", "workers"] = Field(
        "auto", description="device: all images in device memory; workers: decode on the fly; auto: what fits"
    )
    memory_limit_gb: float = Field(
        2.0,
        gt=0,
        description="most memory the decoded images may take for `auto` to choose the device loader",
    )
    replay_limit_gb: float = Field(
        2.0, gt=0, description="most memory for the files that a curriculum with replay shows again"
    )
    num_workers: int = Field(2, ge=0, le=256, description="processes that decode images on the fly")
    decode: Literal["workers", "device"] = Field(
        "workers",
        description="who decodes JPEG files on the fly: those processes, or the training device (nvjpeg on a GPU; "
        "without RandAugment), for which they then only read",
    )
    timeout: float = Field(
        600,
        gt=0,
        description="seconds that these may take for a batch; then the run ends, and names its files; "
        "without such processes the log names them, and the run waits on",
    )
    max_corrupt_fraction: float = Field(
        0.01, ge=0, le=1, description="fraction of unreadable images above which the run is refused"
    )
    fit: Literal["crop", "stretch"] = Field(
        "crop",
        description="how an image becomes a square: the centre of it (see eval_crop), or all of it, distorted",
    )
    eval_crop: float = Field(
        0.875,
        gt=0,
        le=1,
        description="fraction of the shorter side that is shown of a larger image in evaluation",
    )
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="channel means for normalisation, 0 to 1")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="channel stds for normalisation, 0 to 1")

    def read(self) -> Dataset:
        """Open what is on disk.

        Raises:
            UserError: if a file, folder or column is missing or a label is out of range.
        """
        raise NotImplementedError


class FilesSettings(DataSettings):
    """Common part of the sections that name a file or a folder for each split."""

    train: Path = Field(description="training data")
    test: Path | None = Field(None, description="test data; read once, at the end; default: `test_fraction`")

    @model_validator(mode="after")
    def _have_one_test_split(self) -> Self:
        if self.test is None and self.test_fraction is None:
            raise ValueError("test is missing; expected the test data, or a test_fraction such as 0.01")
        if self.test is not None and self.test_fraction is not None:
            raise ValueError(
                f"test_fraction: {self.test_fraction} is given beside test: {self.test}; expected one of them, the "
                "other null"
            )
        return self


@dataclass(frozen=True)
class Dataset:
    """What `DataSettings.read` found; `val` and `test` only where the source has such a split of its own."""

    train: Source
    test: Source | None
    class_names: tuple[str, ...]
    val: Source | None = None
    channels: int = 3
    sequence_length: int | None = None
    """Tokens of a row, where samples are such rows and the classes are all tokens; None where they are images."""
    left_out: np.ndarray | None = None
    """(n,) int64, distinct: positions in `train` of what nobody is to be shown. A test split is drawn before they
    go, so that it loses those among them and stays the same otherwise."""
