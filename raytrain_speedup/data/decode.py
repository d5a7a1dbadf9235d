"""From stored bytes to a square of pixels, decoding no more than that square needs.

A JPEG can be decoded at 1/2, 1/4 or 1/8 scale for a fraction of the work, because its blocks are stored as
frequencies. For a crop that ends at B x B pixels the smallest scale at which the crop still has B pixels a
side is decoded, and one resampling takes the crop straight to B.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from raytrain_speedup.data.base import CorruptSample, Source

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Box:
    """A rectangle in an image, in its pixels."""

    left: float
    top: float
    width: float
    height: float


def image_shape(source: Source, index: int) -> tuple[int, int]:
    """(H, W) of a sample; of a JPEG or PNG only the header is read.

    Raises:
        CorruptSample: if there is no readable header.
    """
    fixed = source.fixed_size()
    if fixed is not None:
        return fixed
    data = source.encoded(index)
    if data is None:
        return source.decode(index).shape[:2]
    try:
        if _is_jpeg(data):
            return simplejpeg.decode_jpeg_header(data)[:2]
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception as error:  # decoders raise all kinds of exceptions for broken files
        raise CorruptSample(index, source.locate(index), _reason(error)) from None


def decode_bytes(data: Buffer, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """(H, W, 3) uint8. A JPEG may come smaller than stored, but no smaller than the minimum asked for.

    A minimum of 0 asks for the full size. Raises whatever the decoders raise for a broken file.
    """
    if _is_jpeg(data):
        try:
            return simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
        except ValueError:
            pass  # CMYK, or stray bytes that Pillow tolerates; a truncated file fails there too
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decode_sample(data: Buffer, source: Source, index: int, **least: int) -> np.ndarray:
    """`decode_bytes` for a sample of a source.

    Raises:
        CorruptSample: if the decoders refuse it.
    """
    try:
        return decode_bytes(data, **least)
    except Exception as error:  # decoders raise all kinds of exceptions for broken files
        raise CorruptSample(index, source.locate(index), _reason(error)) from None


def read_square(source: Source, index: int, box: Box, size: int) -> np.ndarray:
    """The part of a sample inside `box`, resampled to (size, size, C) uint8.

    Args:
        box: in pixels of the image as stored; it may have fractions.
        size: side of the result, B.

    Raises:
        CorruptSample: if the sample cannot be read.
    """
    height, width = image_shape(source, index)
    data = source.encoded(index)
    if data is None:
        image = source.decode(index)
    else:
        shrink = min(1.0, max(size / box.height, size / box.width))
        least = {"min_height": math.ceil(height * shrink), "min_width": math.ceil(width * shrink)}
        image = decode_sample(data, source, index, **least)
    scale_y, scale_x = image.shape[0] / height, image.shape[1] / width
    inside = Box(box.left * scale_x, box.top * scale_y, box.width * scale_x, box.height * scale_y)
    return resample(image, inside, size)


def resample(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Crop and anti-aliased bilinear resize in one pass: (H, W, C) to (size, size, C) uint8."""
    if (box.left, box.top, box.width, box.height) == (0, 0, size, size) == (0, 0, *image.shape[1::-1]):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    result = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=corners))
    return result[..., None] if image.shape[2] == 1 else result


def centre_box(height: int, width: int, size: int, eval_crop: float) -> Box:
    """The square shown in evaluation: `eval_crop` of the shorter side, but never fewer than `size` pixels
    where the image has them, so that an image of the right size is shown whole and as it is."""
    short = min(height, width)
    side = max(short * eval_crop, min(short, size))
    return Box((width - side) / 2, (height - side) / 2, side, side)


def _is_jpeg(data: Buffer) -> bool:
    return bytes(data[:3]) == b"\xff\xd8\xff"


def _reason(error: Exception) -> str:
    return f"{error or type(error).__name__}".splitlines()[0]
