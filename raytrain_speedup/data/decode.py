"""From stored bytes to a square of pixels, decoding no more than that square needs.

A JPEG can be decoded at 1/2, 1/4 or 1/8 scale for less work, because its blocks are stored as frequencies.
For a crop that ends at B x B pixels the smallest of these scales is decoded at which the crop still has B
pixels a side, and one anti-aliased resampling takes the crop straight to B: bicubic to the full size of the
network, as timm's crops are, and Lanczos to the smaller sizes of a curriculum's kernel `resize`.

Tried without gain: the scales between (7/8, 6/8, 5/8, 3/8) have no SIMD code in libjpeg-turbo and cost more
than the next larger power of two; Pillow's resize with `box=` takes 4 to 8 times as long as torch's kernel
for uint8.
"""

from __future__ import annotations

import io
import logging
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from raytrain_speedup.data.base import IGNORE_INDEX, Buffer, CorruptSample, DataSettings, Source
from raytrain_speedup.data.boxes import FIELDS, move_boxes
from raytrain_speedup.data.watchdog import watched

log = logging.getLogger("raytrain_speedup.data")

Resampling = Literal["bicubic", "lanczos"]

_SCALES = (8, 4, 2)
_PLAIN_JPEG = ("YCbCr", "RGB", "Gray")
_CHUNK = 64  # samples that a thread reads together and decodes


class Box(NamedTuple):
    """A rectangle in an image, in its pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Stored:
    """One sample before decoding, of which only the size is known.

    Attributes:
        height, width: in pixels.
        content: the file, or (H, W, C) uint8 where the source holds plain pixels.
    """

    source: Source
    index: int
    height: int
    width: int
    content: Buffer | np.ndarray

    def square(self, box: Box, size: int, resampling: Resampling = "bicubic") -> np.ndarray:
        """The part inside `box`, resampled to (size, size, C) uint8.

        Raises:
            CorruptSample: if the sample cannot be decoded.
        """
        if isinstance(self.content, np.ndarray):
            image = self.content
        else:
            scale = next((s for s in _SCALES if min(box.width, box.height) >= s * size), 1)
            image = decode(self.content, self.source, self.index, scale)
        scale_y, scale_x = image.shape[0] / self.height, image.shape[1] / self.width
        box = Box(box.left * scale_x, box.top * scale_y, box.width * scale_x, box.height * scale_y)
        return resample(image, box, size, resampling)

    def square_target(self, box: Box, size: int) -> np.ndarray:
        """What is to be found inside `box`, a row of `target_rows`, at the size of `square`.

        Raises:
            CorruptSample: if there is no such mask, or a box that is not in the image.
        """
        return self.square_mask(box, size) if self.source.dense else self.square_boxes(box, size)

    def square_boxes(self, box: Box, size: int) -> np.ndarray:
        """The objects inside `box`, (M, 5) float32 as `boxes.py` says, M the most that an image has."""
        found = self.source.boxes(self.index)
        corners = found[:, :4]
        outside = (corners < -1) | (corners > np.array([self.width, self.height] * 2) + 1)  # 1: for rounding
        if outside.any():
            left, top, right, bottom = corners[outside.any(1)][0].tolist()
            raise CorruptSample(
                self.index,
                self.source.locate(self.index),
                f"its boxes: one from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) is not in the image of "
                f"{self.width} x {self.height} pixels",
            )
        rows = torch.zeros(1, self.source.max_boxes, FIELDS)
        rows[0, : len(found)] = torch.from_numpy(found)
        left, top, right, bottom = whole_pixels(box)
        scale = torch.tensor([[size / (right - left), size / (bottom - top)]])
        return move_boxes(rows, scale, -scale * torch.tensor([[left, top]]), size)[0].numpy()

    def square_mask(self, box: Box, size: int) -> np.ndarray:
        """The classes of the pixels inside `box`, (size, size) uint8: each is that of the nearest one.

        Raises:
            CorruptSample: if there is no such mask.
        """
        mask = self.source.mask(self.index)
        if mask.shape != (self.height, self.width):
            raise CorruptSample(
                self.index,
                self.source.locate(self.index),
                f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, the image {self.width} x {self.height}",
            )
        return resample_mask(mask, box, size)


def read(source: Source, index: int, data: Buffer | None = None) -> Stored:
    """Fetch a sample, unless its file is at hand as `data`, and read its header.

    Raises:
        CorruptSample: if there is no readable header.
    """
    data = source.encoded(index) if data is None else data
    if data is None:
        pixels = source.decode(index)
        return Stored(source, index, pixels.shape[0], pixels.shape[1], pixels)
    try:
        if _is_jpeg(data):
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        else:
            with Image.open(io.BytesIO(data)) as image:
                height, width = image.height, image.width
    except Exception as error:  # decoders raise all kinds of exceptions for broken files
        raise CorruptSample(index, source.locate(index), reason(error)) from None
    return Stored(source, index, height, width, data)


def decode(data: Buffer, source: Source, index: int, scale: int = 1) -> np.ndarray:
    """Decode a stored file to (H, W, 3) uint8; a JPEG to 1/scale of its size.

    Args:
        source, index: whose file it is, for the message.
        scale: 1, 2, 4 or 8.

    Raises:
        CorruptSample: if the decoders refuse it.
    """
    try:
        if _is_jpeg(data):
            return _decode_jpeg(data, scale)
        return _decode_other(data)
    except Exception as error:  # decoders raise all kinds of exceptions for broken files
        raise CorruptSample(index, source.locate(index), reason(error)) from None


def _decode_jpeg(data: Buffer, scale: int) -> np.ndarray:
    """Strictly: what libjpeg-turbo warns of (stray bytes, a damaged block) is shown as gray or noise by
    decoders that go on, Pillow's among them, so that it counts as unreadable."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in _PLAIN_JPEG:  # CMYK and the like, which libjpeg-turbo leaves to others
        return _decode_other(data)
    return simplejpeg.decode_jpeg(
        data, min_height=math.ceil(height / scale), min_width=math.ceil(width / scale)
    )


def _decode_other(data: Buffer) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        deep = image.mode.startswith(("I", "F"))
        return np.array((_eight_bits(image) if deep else image).convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The high bytes of 16-bit gray, which is what Pillow itself reads of 16-bit colour; its `convert` would
    clip at 255 instead."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() >= 1 << 16:
        raise ValueError(f"pixels of mode {image.mode} have no known range; expected 8 or 16 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def resample(image: np.ndarray, box: Box, size: int, resampling: Resampling = "bicubic") -> np.ndarray:
    """Crop to whole pixels and resize with anti-aliasing: (H, W, C) to (size, size, C) uint8."""
    left, top, right, bottom = whole_pixels(box)
    part = image[top:bottom, left:right]
    if part.shape[:2] == (size, size):
        return part
    x = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
    x = F.interpolate(x, size=(size, size), mode=resampling, antialias=True)
    return x[0].permute(1, 2, 0).numpy()


def resample_mask(mask: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The same crop as `resample` makes, of (H, W) classes: (size, size), without inventing any class."""
    left, top, right, bottom = whole_pixels(box)
    middle = (np.arange(size) + 0.5) / size
    rows = top + (middle * (bottom - top)).astype(np.int64)
    columns = left + (middle * (right - left)).astype(np.int64)
    return mask[rows[:, None], columns]


def shown_box(height: int, width: int, size: int, settings: DataSettings) -> Box:
    """The part of an image that is shown where nothing crops it at random."""
    if settings.fit == "stretch":
        return Box(0, 0, width, height)
    return centre_box(height, width, size, settings.eval_crop)


def centre_box(height: int, width: int, size: int, eval_crop: float) -> Box:
    """The square shown in evaluation: `eval_crop` of the shorter side, but never fewer than `size` pixels
    where the image has them, so that an image of the right size is shown whole and as it is."""
    short = min(height, width)
    side = max(short * eval_crop, min(short, size))
    return Box((width - side) / 2, (height - side) / 2, side, side)


def whole_pixels(box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; a pixel at least."""
    left, top = round(box.left), round(box.top)
    return left, top, max(left + 1, round(box.left + box.width)), max(top + 1, round(box.top + box.height))


def _is_jpeg(data: Buffer) -> bool:
    return bytes(data[:3]) == b"\xff\xd8\xff"


def is_whole_jpeg(data: Buffer) -> bool:
    """Whether this is a JPEG of a kind that every decoder knows, with an end. Decoders less strict than ours show
    one without as if the rest were gray.

    Raises:
        ValueError: if its header cannot be read.
    """
    if not _is_jpeg(data) or bytes(data[-2:]) != b"\xff\xd9":
        return False
    return simplejpeg.decode_jpeg_header(data)[2] in _PLAIN_JPEG


def reason(error: Exception) -> str:
    """What a decoder said, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "this is no image file"
    return (str(error) or type(error).__name__).splitlines()[0]


def target_rows(source: Source, count: int, size: int) -> np.ndarray | None:
    """Room for the targets of `count` samples that have a place in the image: masks (count, size, size) uint8, or
    boxes (count, M, 5) float32. None where each is a class."""
    if source.dense:
        return np.full((count, size, size), IGNORE_INDEX, dtype=np.uint8)
    return np.zeros((count, source.max_boxes, FIELDS), dtype=np.float32) if source.placed else None


def decode_all(
    source: Source, settings: DataSettings, size: int, channels: int, *, quiet: bool, title: str
) -> tuple[Tensor, Tensor | None, list[CorruptSample]]:
    """Every sample of a source at (size, size), by a few threads: the decoders release the GIL.
    Files that do not come for `settings.timeout` seconds are told of in the log.

    Returns:
        (N, size, size, channels) uint8, the `target_rows` where targets have a place, and what could not be read,
        in order.
    """
    images = np.zeros((len(source), size, size, channels), dtype=np.uint8)
    targets = target_rows(source, len(source), size)
    errors: list[CorruptSample] = []

    def decode(start: int) -> list[CorruptSample]:
        failed = []
        chunk = range(start, min(start + _CHUNK, len(source)))
        for index, content in zip(chunk, source.encoded_many(chunk), strict=True):
            try:
                if isinstance(content, CorruptSample):
                    raise content
                stored = read(source, index, content)
                box = shown_box(stored.height, stored.width, size, settings)
                images[index] = stored.square(box, size)
                if targets is not None:
                    targets[index] = stored.square_target(box, size)
            except CorruptSample as error:
                failed.append(error)
        return failed

    starts, done = range(0, len(source), _CHUNK), 0

    def tell() -> None:
        chunk = range(starts[done], min(starts[done] + _CHUNK, len(source)))
        files = list(dict.fromkeys(source.locate(index).partition(" bytes ")[0] for index in chunk))
        log.warning(
            "data.timeout: this process has waited %g s for %s%s; it goes on waiting, for it cannot be interrupted "
            "(loading processes can: data.loader=workers)",
            settings.timeout,
            files[0],
            f", or one of {len(files) - 1} files after it" if files[1:] else "",
        )

    silent = quiet or not sys.stderr.isatty() or len(starts) < 32
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        Progress(console=Console(stderr=True), transient=True, disable=silent) as progress,
    ):
        parts = watched(pool.map(decode, starts), settings.timeout, tell)
        for failed in progress.track(parts, total=len(starts), description=title):
            errors += failed
            done += 1
    return torch.from_numpy(images), None if targets is None else torch.from_numpy(targets), errors
