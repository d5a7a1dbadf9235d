"""What a worker process does: a request for one batch comes in, decoded images go out.

The crop's box and RandAugment are drawn here, since they want single images of different shapes; all other
augmentation is for whole batches and waits for them on the device. With `data.decode=device` so does the
decoding of JPEGs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raytrain_speedup.data import augment
from raytrain_speedup.data.base import Buffer, CorruptSample, DataSettings, Source
from raytrain_speedup.data.decode import (
    Box,
    Resampling,
    Stored,
    is_whole_jpeg,
    read,
    shown_box,
    target_rows,
    whole_pixels,
)
from raytrain_speedup.data.device_decode import Encoded, File
from raytrain_speedup.data.randaugment import randaugment


@dataclass(frozen=True)
class Request:
    """One batch to decode.

    Attributes:
        index: (b,) int64.
        size: image size wanted; smaller than full only where a crop goes straight to it.
        resampling: what brings a crop to that size.
        files: those of the samples that are at hand, by index; the others are read.
        wanted: of how many samples, from the first on, the files are sent back.
    """

    index: np.ndarray
    size: int
    resampling: Resampling = "bicubic"
    files: Mapping[int, bytes] = field(default_factory=dict)
    wanted: int = 0
    drawn: Drawn | None = None


@dataclass(frozen=True)
class Drawn:
    """How the samples of a request are augmented; without it they are shown as they are.

    Attributes:
        view: (b,) int64, keys the randomness beside the epoch; see `Loader.views`.
        magnitude: of RandAugment, on timm's scale of 0 to 10; 0 leaves the images alone.
    """

    view: np.ndarray
    epoch: int
    magnitude: float


@dataclass(frozen=True)
class Decoded:
    """What comes back for a request.

    Attributes:
        images: (k, size, size, C) uint8; without the rows of `encoded`.
        targets: (k, ...) as `target_rows`, where they have a place in the image.
        kept: (k,) int64, positions in the request of the samples that could be read, in order.
        skipped: the others.
        files: those that were wanted, by index.
        bytes_read: of the source, for this request; None where it does not count them.
        encoded: what the device is to decode.
    """

    images: Tensor
    targets: Tensor | None
    kept: np.ndarray
    skipped: list[CorruptSample]
    files: dict[int, bytes]
    bytes_read: int | None = None
    encoded: Encoded | None = None

    def pin_memory(self) -> Decoded:
        """Called by the `DataLoader`. Files stay where they are: decoders read them from ordinary memory."""
        targets = None if self.targets is None else self.targets.pin_memory()
        return replace(self, images=self.images.pin_memory(), targets=targets)


class BatchDataset(Dataset):
    """Decodes whole batches."""

    def __init__(self, source: Source, settings: DataSettings, channels: int, seed: int) -> None:
        self.source, self.settings, self.channels, self.seed = source, settings, channels, seed

    def __getitem__(self, request: Request) -> Decoded:
        skipped: list[CorruptSample] = []
        before = self.source.bytes_read
        stored, files = self._read(request, skipped)
        after = self.source.bytes_read
        images = np.empty((len(stored), request.size, request.size, self.channels), dtype=np.uint8)
        targets = target_rows(self.source, len(stored), request.size)
        kept: list[int] = []
        left: list[File] = []  # for the device to decode
        for (position, sample), box in zip(stored.items(), self._boxes(request, stored), strict=True):
            try:
                if targets is not None:
                    targets[len(kept)] = sample.square_target(box, request.size)
                if (file := self._left(sample)) is not None:
                    left.append(File(len(kept), sample.index, file, whole_pixels(box)))
                else:
                    images[len(kept) - len(left)] = self._image(sample, box, request, position)
            except CorruptSample as error:
                skipped.append(error)
                continue
            kept.append(position)
        count = len(kept)
        return Decoded(
            torch.from_numpy(images[: count - len(left)]),
            None if targets is None else torch.from_numpy(targets[:count]),
            np.array(kept, dtype=np.int64),
            skipped,
            {index: files[index] for index in request.index[: request.wanted].tolist() if index in files},
            None if before is None or after is None else after - before,
            Encoded.of(left, request.size, request.resampling) if left else None,
        )

    def _left(self, sample: Stored) -> Buffer | None:
        """The file of a sample, if the device decodes it."""
        file = sample.content
        if self.settings.decode == "workers" or isinstance(file, np.ndarray) or not is_whole_jpeg(file):
            return None
        return file

    def _read(
        self, request: Request, skipped: list[CorruptSample]
    ) -> tuple[dict[int, Stored], dict[int, bytes]]:
        """Samples by their position in the request, and files by index; none is read twice."""
        stored: dict[int, Stored] = {}
        wanted = [index for index in dict.fromkeys(request.index.tolist()) if index not in request.files]
        read_now = zip(wanted, self.source.encoded_many(wanted), strict=True)
        contents = {**request.files, **dict(read_now)}
        for position, index in enumerate(request.index.tolist()):
            content = contents[index]
            try:
                if isinstance(content, CorruptSample):
                    raise content
                stored[position] = read(self.source, index, content)
            except CorruptSample as error:
                skipped.append(error)
        known = stored.values() if request.wanted else ()
        return stored, {
            sample.index: bytes(sample.content)
            for sample in known
            if not isinstance(sample.content, np.ndarray)
        }

    def _boxes(self, request: Request, stored: dict[int, Stored]) -> list[Box]:
        """The part that each sample shows."""
        samples = list(stored.values())
        if request.drawn is None or self.settings.augment != "random-resized-crop":
            return [shown_box(sample.height, sample.width, request.size, self.settings) for sample in samples]
        boxes = augment.random_boxes(
            torch.from_numpy(request.drawn.view[list(stored)]),
            torch.tensor([sample.height for sample in samples]),
            torch.tensor([sample.width for sample in samples]),
            seed=self.seed,
            epoch=request.drawn.epoch,
            min_scale=self.settings.min_scale,
        )
        return [Box(*box) for box in boxes.T.tolist()]

    def _image(self, sample: Stored, box: Box, request: Request, position: int) -> np.ndarray:
        """(size, size, C) uint8."""
        image = sample.square(box, request.size, request.resampling)
        if request.drawn is None:
            return image
        return randaugment(
            image,
            request.drawn.magnitude,
            mean=self.settings.mean,
            seed=self.seed,
            epoch=request.drawn.epoch,
            index=int(request.drawn.view[position]),
        )
