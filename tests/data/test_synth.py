"""A made-up set is what was asked for, the same wherever it is made, and its classes differ where they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.reading import ShardReader
from raytrain_speedup.data.synthetic import draw_image, make_images, patterns_of
from raytrain_speedup.settings import UserError

CLASSES, SIZE = 6, 32


def test_tars_are_indexed_and_hold_what_was_drawn(tmp_path: Path) -> None:
    options = {"images": 25, "classes": CLASSES, "size": SIZE, "seed": 3}
    tars = make_images(tmp_path / "tars", per_shard=10, processes=2, **options)
    assert [path.name for path in tars] == [f"{start:09d}.tar" for start in (0, 10, 20)]
    index = make_index(tmp_path / "tars", tmp_path / "index", processes=1)
    assert index.class_names == tuple(f"class-{label:05d}" for label in range(CLASSES))
    assert index.targets.tolist() == [number % CLASSES for number in range(25)]
    make_images(tmp_path / "folders", layout="folder", per_shard=7, processes=1, **options)
    reader = ShardReader(index)
    for number in range(25):
        stored = reader.read(number)
        own = tmp_path / "folders" / f"class-{number % CLASSES:05d}" / f"{number:09d}.jpg"
        assert stored == own.read_bytes(), "shards and layout do not decide what is drawn"
        image = np.asarray(Image.open(own)).astype(float)
        drawn = draw_image(number, number % CLASSES, CLASSES, size=SIZE, seed=3)
        assert np.abs(image - drawn).mean() < 25, "JPEG at 90 keeps the pattern, not the noise's colours"


def test_another_seed_is_another_set() -> None:
    first = draw_image(0, 0, CLASSES, size=SIZE, seed=0)
    assert first.shape == (SIZE, SIZE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, draw_image(0, 0, CLASSES, size=SIZE, seed=0))
    assert not np.array_equal(first, draw_image(0, 0, CLASSES, size=SIZE, seed=1))
    assert not np.array_equal(first, draw_image(6, 0, CLASSES, size=SIZE, seed=0))


def spectrum(image: np.ndarray) -> np.ndarray:
    """Power at every frequency of an image's mean channel."""
    gray = image.mean(axis=2)
    return np.abs(np.fft.fftshift(np.fft.fft2(gray - gray.mean()))) ** 2


@pytest.mark.parametrize("band", ["low", "high"])
def test_each_band_tells_its_half_of_the_class_and_not_the_other(band: str) -> None:
    """Nearest mean spectrum within one band, learnt on half of the images, tried on the others."""
    classes, size, each = 9, 32, 60
    broad, fine = patterns_of(classes)
    assert (broad, fine) == (3, 3)
    frequency = np.hypot(*np.meshgrid(*[np.arange(size) - size // 2] * 2))
    inside = frequency <= 3 if band == "low" else np.abs(frequency - size / 4) < 2
    labels = np.arange(classes * each) % classes
    seen = np.stack(
        [spectrum(draw_image(i, k, classes, size=size, seed=0))[inside] for i, k in enumerate(labels)]
    )
    seen /= seen.sum(axis=1, keepdims=True)
    half = len(labels) // 2

    def accuracy(part: np.ndarray) -> float:
        means = np.stack([seen[:half][part[:half] == k].mean(axis=0) for k in range(3)])
        nearest = ((seen[half:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        return float((nearest == part[half:]).mean())

    told, untold = (labels // fine, labels % fine) if band == "low" else (labels % fine, labels // fine)
    assert accuracy(told) > 0.9 and accuracy(untold) < 0.5


def test_what_makes_no_set_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 images of 6 classes and 32 pixels make no set"):
        make_images(tmp_path / "new", images=3, classes=6, size=32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="full is there already; expected a new folder"):
        make_images(tmp_path / "full", images=30, classes=6, size=32)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_the_command(tmp_path: Path) -> None:
    arguments = ["--images", "12", "--classes", "4", "--size", "16", "--layout", "folder"]
    found = CliRunner().invoke(app, ["data", "synth", "-o", str(tmp_path / "set"), *arguments])
    assert found.exit_code == 0 and "12 images of 4 classes in 4 folders" in " ".join(found.output.split())
    assert len(list((tmp_path / "set").rglob("*.jpg"))) == 12
