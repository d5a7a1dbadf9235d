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
    stored.square(Box(0, 0, 400, 199), 50)  # the shorter side decides
    stored.square(Box(0, 0, 99, 400), 50)
    assert asked == [8, 4, 2, 1, 1, 2, 1]


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


@pytest.mark.parametrize("stored_as", ["JPEG", "PNG", "pixels"])
@pytest.mark.parametrize(("side", "size"), [(300, 96), (190, 96), (224, 160), (130, 128), (60, 96)])
def test_lanczos_is_pillows(stored_as, side, size) -> None:
    """Of the decoded image, and near that of the image in full where its scale is reduced."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((360, 310), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG" if stored_as == "JPEG" else "PNG", quality=98)
    data = stream.getvalue()
    whole = np.asarray(Image.open(io.BytesIO(data)))
    source = ArraySource(whole[None], np.zeros(1), "made") if stored_as == "pixels" else Files(data)
    stored = read(source, 0)
    found = stored.square(Box(20, 10, side, side), size, "lanczos").astype(int)
    box = (20, 10, 20 + side, 10 + side)
    expected = np.asarray(Image.fromarray(whole).crop(box).resize((size, size), Image.Resampling.LANCZOS))
    scaled = stored_as == "JPEG" and side >= 2 * size
    assert np.abs(found - expected).max() <= (8 if scaled else 2)
    assert np.abs(found - expected).mean() <= (0.7 if scaled else 0.3)


@pytest.mark.parametrize("size", [96, 190])
def test_the_two_resamplings_differ_where_there_are_fine_lines(size) -> None:
    lines = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3), dtype=np.uint8)
    stored = read(ArraySource(lines, np.zeros(1), "made"), 0)
    for resampling, theirs in (
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ):
        found = stored.square(Box(0, 0, 200, 200), size, resampling).astype(int)
        assert np.abs(found - np.asarray(Image.fromarray(lines[0]).resize((size, size), theirs))).max() <= 3


def sixteen_bits(kind: str, values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind) -> None:
    values = np.linspace(0, 65535, 24 * 24).astype(np.uint16).reshape(24, 24)
    source = Files(sixteen_bits(kind, values))
    found = source.decode(0)
    assert found.shape == (24, 24, 3) and found.min() == 0 and found.max() == 255
    assert np.abs(found - values[:, :, None] / 257).max() <= 1


@pytest.mark.parametrize("values", [[[-1]], [[65536]], [[0.5]]], ids=["negative", "large", "real"])
def test_pixels_without_a_known_range_are_unreadable(values) -> None:
    kind = np.float32 if isinstance(values[0][0], float) else np.int32
    source = Files(sixteen_bits("TIFF", np.array(values, dtype=kind)))
    with pytest.raises(
        CorruptSample, match=r"mode [IF] have no known range; expected 8 or 16 bits a channel"
    ):
        source.decode(0)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("damage", ["stray bytes", "a block overwritten", "bytes lost"])
def test_a_damaged_jpeg_is_unreadable_though_pillow_shows_it(damage, scale) -> None:
    data = picture(3, size=(96, 96), kind="JPEG")
    middle = len(data) * 2 // 3
    damaged = {
        "stray bytes": data[:-2] + b"\x12\x34\x56" + data[-2:],
        "a block overwritten": data[:middle] + b"\xff\xd3" * 8 + data[middle + 16 :],
        "bytes lost": data[:middle] + data[middle + 40 :],
    }[damage]
    assert Image.open(io.BytesIO(damaged)).convert("RGB").size == (96, 96)
    with pytest.raises(CorruptSample):
        decode(damaged, Files(damaged), 0, scale)


def test_cmyk_is_left_to_pillow() -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(1, size=(20, 10)))).convert("CMYK").save(stream, "JPEG")
    expected = np.asarray(Image.open(stream).convert("RGB"))
    assert np.array_equal(Files(stream.getvalue()).decode(0), expected)


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
