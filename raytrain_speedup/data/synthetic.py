"""A labelled set of images of any size, made up: to try a set-up at scale before its data are there.

Classes differ in two ways. A class is a pair of a broad pattern (one or two waves over the image) and a fine one (a
wave every four pixels), each at one of several angles: what is left of an image at a quarter of its size tells the
broad one alone. So a curriculum of low frequencies can learn some of it early and never all, pruning finds samples
that are easy (little noise) and hard, and an accuracy that stays at 1 / sqrt(classes) has missed one of the two.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from rich.progress import Progress

from raytrain_speedup.data.folders import new_folder
from raytrain_speedup.data.index.webdataset import write_shard
from raytrain_speedup.randomness import numpy_generator
from raytrain_speedup.settings import UserError

Layout = Literal["tar", "folder"]

QUALITY = 90
WAVELENGTH = 4
"""Of the fine pattern, in pixels."""


def patterns_of(classes: int) -> tuple[int, int]:
    """How many broad and how many fine patterns make so many classes."""
    fine = math.ceil(math.sqrt(classes))
    return math.ceil(classes / fine), fine


def draw_image(number: int, label: int, classes: int, *, size: int, seed: int) -> np.ndarray:
    """The image (size, size, 3) uint8 of a sample.

    Args:
        number: of the sample; the same one is always drawn alike.
        label: its class, from 0 to `classes` - 1.
    """
    random = numpy_generator(seed, number)
    broad, fine = patterns_of(classes)
    y, x = np.mgrid[:size, :size] / size
    low = _wave(x, y, np.pi * (label // fine) / broad, random.uniform(1, 2), random)
    high = _wave(x, y, np.pi * (label % fine) / fine, size / WAVELENGTH, random)
    noise = random.standard_normal((size, size, 3)) * random.uniform(0.1, 1.5)
    tint = random.uniform(0.6, 1.0, 3)
    pattern = 0.5 * low + 0.35 * high
    return np.clip(127.5 + 90 * (pattern[..., None] * tint + noise), 0, 255).astype(np.uint8)


def _wave(
    x: np.ndarray, y: np.ndarray, angle: float, cycles: float, random: np.random.Generator
) -> np.ndarray:
    phase = random.uniform(0, 2 * np.pi)
    return np.cos(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase)


def make_images(
    folder: Path,
    *,
    images: int,
    classes: int,
    size: int,
    seed: int = 0,
    layout: Layout = "tar",
    per_shard: int = 1000,
    processes: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a set: tar files in WebDataset's layout, or a folder a class; classes take turns.

    Args:
        folder: where it goes; nothing may be in it.
        size: of the images, in pixels.
        per_shard: samples of a tar file, and what a process draws at a time.
        processes: default: one for each core.

    Returns:
        The tar files, or the folders of the classes.

    Raises:
        UserError: for a folder that is not empty, or numbers that make no set.
    """
    if classes < 2 or images < classes or size < 2 * WAVELENGTH:
        raise UserError(
            f"data synth: {images} images of {classes} classes and {size} pixels make no set; expected 2 classes, "
            f"an image of each and {2 * WAVELENGTH} pixels at least"
        )
    starts = range(0, images, per_shard)
    jobs = [(folder, start, min(start + per_shard, images), classes, size, seed) for start in starts]
    write = _write_tar if layout == "tar" else _write_folder
    workers = min(processes or os.cpu_count() or 1, len(jobs))
    with new_folder("data synth", folder), ProcessPoolExecutor(workers) as pool:
        done = pool.map(write, jobs)
        if progress is not None:
            done = progress.track(done, total=len(jobs), description="drawing")  # type: ignore[assignment]
        for _ in done:
            pass
    return sorted(folder.iterdir())


_Job = tuple[Path, int, int, int, int, int]


def _write_tar(job: _Job) -> None:
    folder, start, end, classes, size, seed = job
    samples = (
        (f"{number:09d}.jpg", _jpeg(number, number % classes, classes, size, seed), _name(number % classes))
        for number in range(start, end)
    )
    write_shard(folder / f"{start:09d}.tar", samples)


def _write_folder(job: _Job) -> None:
    folder, start, end, classes, size, seed = job
    for number in range(start, end):
        label = number % classes
        place = folder / _name(label)
        place.mkdir(exist_ok=True)
        (place / f"{number:09d}.jpg").write_bytes(_jpeg(number, label, classes, size, seed))


def _jpeg(number: int, label: int, classes: int, size: int, seed: int) -> bytes:
    image = draw_image(number, label, classes, size=size, seed=seed)
    return simplejpeg.encode_jpeg(image, quality=QUALITY)


def _name(label: int) -> str:
    return f"class-{label:05d}"
