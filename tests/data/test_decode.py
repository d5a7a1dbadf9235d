"""Decoding at a reduced scale shows the same picture as decoding in full."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tiny_data import picture

from raytrain_speedup.data.base import ArraySource, Buffer, CorruptSample, Source
from raytrain_speedup.data.decode import Box, centre_box, decode, read, resample


class Files(Source):
    def __init__(self, *files: Buffer) -> None:
        self.files, self.targets = files, np.zeros(len(files), dtype=np.int64)

    def encoded(self, index: int) -> Buffer:
        return self.files[index]

    def decode(self, index: int) -> np.ndarray:
        return decode(self.files[index], self, index)

    def locate(self, index: int) -> str:
        return f"file {index}"


@pytest.mark.parametrize("size", [16, 30, 60, 64, 120, 240, 300])
@pytest.mark.parametrize("box", [Box(0, 0, 480, 360), Box(37, 53, 250, 247), Box(100, 20, 130, 135)])
def test_a_scaled_decode_matches_pillow_in_full(size, box) -> None:
    stored = read(Files(picture(3, size=(480, 360), kind="JPEG")), 0)
    assert (stored.height, stored.width) == (360, 480)
    found = stored.square(box, size)
    full = Image.open(io.BytesIO(picture(3, size=(480, 360), kind="JPEG")))
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = np.asarray(full.resize((size, size), Image.Resampling.BICUBIC, box=corners))
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    # half a pixel at 1/8 scale is 4 pixels of a slope of 200 / 360 a pixel
    assert np.abs(found.astype(int) - expected).max() <= 6


@pytest.mark.parametrize(
    ("scale", "shape"), [(1, (333, 477)), (2, (167, 239)), (4, (84, 120)), (8, (42, 60))]
)
def test_a_jpeg_is_decoded_at_the_scale_asked_for(scale, shape) -> None:
    source = Files(picture(0, size=(477, 333), kind="JPEG"))
    assert decode(source.files[0], source, 0, scale).shape[:2] == shape


def test_no_pixel_is_made_up_where_the_file_has_enough(monkeypatch) -> None:
    asked = []
    original = decode
    monkeypatch.setattr(
        "raytrain_speedup.data.decode.decode",
        lambda data, source, index, scale: asked.append(scale) or original(data, source, index, scale),
    )
    stored = read(Files(picture(0, size=(400, 400), kind="JPEG")), 0)
    for side, size in ((400, 50), (399, 50), (200, 96), (400, 224), (100, 224)):
        stored.square(Box(0, 0, side, side), size)
    assert asked == [8, 4, 2, 1, 1]


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "I;16"], ids=lambda mode: mode.replace(";", "")
)
def test_every_kind_of_image_becomes_rgb(mode) -> None:
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(picture(1, size=(20, 10))))
    image = Image.new("I;16", (20, 10)) if mode == "I;16" else image.convert(mode)
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG")
    found = read(Files(stream.getvalue()), 0).square(Box(0, 0, 20, 10), 8)
    assert found.shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "header only"])
def test_a_broken_file_is_a_corrupt_sample(kind, damage) -> None:
    data = picture(0, size=(64, 64), kind=kind)
    broken = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "noise": b"\x07" * 99,
        "header only": data[:12],
    }
    source = Files(data, broken[damage])
    with pytest.raises(CorruptSample, match=r"file 1: ."):
        read(source, 1).square(Box(0, 0, 64, 64), 32)
    with pytest.raises(CorruptSample):
        source.decode(1)


def test_plain_pixels_and_gray_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 1), dtype=np.uint8)
    source = ArraySource(images, np.zeros(2), "made")
    assert np.array_equal(read(source, 1).square(Box(0, 0, 20, 20), 20), images[1])
    assert np.array_equal(read(source, 1).square(Box(4, 2, 10, 10), 10), images[1, 2:12, 4:14])
    assert read(source, 1).square(Box(0, 0, 20, 20), 9).shape == (9, 9, 1)


def test_resample_of_a_box_under_one_pixel() -> None:
    image = np.full((4, 4, 3), 9, dtype=np.uint8)
    assert (resample(image, Box(3.6, 3.6, 0.3, 0.3)._replace(left=2.6, top=2.6), 5) == 9).all()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((32, 32), 32, Box(0, 0, 32, 32)),  # of the right size: as it is
        ((20, 30), 32, Box(5, 0, 20, 20)),  # smaller: enlarged whole
        ((256, 256), 224, Box(16, 16, 224, 224)),  # the usual evaluation
        ((512, 256), 112, Box(16, 144, 224, 224)),
        ((33, 33), 32, Box(0.5, 0.5, 32, 32)),  # nearly of the right size: its own pixels
    ],
)
def test_centre_box(shape, size, expected) -> None:
    assert centre_box(*shape, size, 0.875) == expected
