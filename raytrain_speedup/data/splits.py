"""From a source to the training, validation and test split of an experiment.

Where a source has no validation split of its own, some training samples are set aside: by a rule of the labels
and a seed, class by class, the same on every machine. Where it has no test split, likewise, and the same ones for
every experiment: they are a part of the data.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from raytrain_speedup import randomness
from raytrain_speedup.data.base import CorruptSample, Dataset, DataSettings, Source, leaving_out
from raytrain_speedup.data.decode import read
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_TEST_SEED = 22_000
"""Of the test split that is held back. It stays: all runs are to be judged by the same samples."""


@dataclass(frozen=True)
class Splits:
    """The data of an experiment. Tuning looks at `val`; `test` is read once, at the end.

    Attributes:
        image_size: the image size the network sees at full resolution, in pixels; of sequences, their tokens.
        fingerprint: short hash of the data and the split, equal only for runs that can be compared.
    """

    train: Source
    val: Source
    test: Source
    num_classes: int
    channels: int
    image_size: int
    class_names: tuple[str, ...]
    fingerprint: str
    inputs: Literal["images", "sequences"] = "images"

    @property
    def dense(self) -> bool:
        """Whether every pixel has a class, rather than every image."""
        return self.train.dense

    @property
    def targets(self) -> str:
        """What every image has, "classes", "masks" or "boxes"; a sequence has an "answer" in it."""
        if self.inputs == "sequences":
            return "answers"
        if self.train.max_boxes:
            return "boxes"
        return "masks" if self.dense else "classes"

    def input_shape(self, size: int | None = None) -> tuple[int, ...]:
        """(C, H, W) of an image at a stage's size, or at full size; (L,) of a sequence."""
        size = size or self.image_size
        return (size,) if self.inputs == "sequences" else (self.channels, size, size)


def open_data(settings: DataSettings, *, seed: int) -> Splits:
    """Open a source and carve the validation split where it has none of its own.

    Args:
        seed: the training seed; it only matters where `settings.split_seed` is null.

    Raises:
        UserError: for whatever is missing or malformed, naming the key or file.
    """
    data = settings.read()
    _check(settings, data)
    train, test = _with_test_split(settings, data)
    _check_not_empty(train, test)
    val = data.val
    if val is None and not settings.val_fraction:
        val = train.subset(
            np.empty(0, dtype=np.int64)
        )  # `train` stays as it is: an index's tables are mapped
    elif val is None:
        split_seed = seed if settings.split_seed is None else settings.split_seed
        stay, aside = balanced_split(train.targets, settings.val_fraction, split_seed)
        train, val = train.subset(stay), train.subset(aside)
    size = data.sequence_length or settings.image_size or _stored_size(settings, train)
    return Splits(
        train=train,
        val=val,
        test=test,
        num_classes=len(data.class_names),
        channels=data.channels,
        image_size=size,
        class_names=data.class_names,
        fingerprint=fingerprint(settings.source, (train, val, test), size),
        inputs="images" if data.sequence_length is None else "sequences",
    )


def _check(settings: DataSettings, data: Dataset) -> None:
    for key in ("mean", "std") if data.sequence_length is None else ():
        found = getattr(settings, key)
        if len(found) != data.channels:
            raise UserError(
                f"data.{key}: {found} has {len(found)} values; expected {data.channels}, one a channel"
            )
    if not all(std > 0 for std in settings.std):
        raise UserError(f"data.std: {settings.std} is not allowed; expected values above 0")
    _check_not_empty(data.train, data.test)


def _check_not_empty(train: Source, test: Source | None) -> None:
    for key, source in (("train", train), ("test", test)):
        if source is not None and not len(source):
            raise UserError(f"data.{key}: there are no samples in it; expected at least one")


def _with_test_split(settings: DataSettings, data: Dataset) -> tuple[Source, Source]:
    """The samples to train and validate on, and those of the test split: the source's own, or held back.

    Raises:
        UserError: if there is a test split and `test_fraction` asks for another, if there is neither, or if that is
            of no sample.
    """
    fraction = settings.test_fraction
    if data.test is not None:
        if fraction is not None:
            raise UserError(
                f"data.test_fraction: {fraction} is given, and {settings.source} has a test split of its own; "
                "expected null"
            )
        return leaving_out(data.train, data.left_out), data.test
    if fraction is None:
        raise UserError("data.test_fraction: null, and the data have no test split; expected such as 0.01")
    targets = data.train.targets
    stay, aside = balanced_split(targets, fraction, _TEST_SEED)
    if not len(aside):
        raise UserError(
            f"data.test_fraction: {fraction} of {len(targets):,} training samples, class by class, are none; "
            f"expected at least {1 / len(targets):.2g}, and classes of two samples or more"
        )
    if data.left_out is not None and len(data.left_out):
        shown = np.ones(len(targets), dtype=bool)
        shown[data.left_out] = False
        stay, aside = stay[shown[stay]], aside[shown[aside]]
    log.info(
        "data.test_fraction: %d training samples are held back as the test split%s",
        len(aside),
        ""
        if data.train.placed
        else f", of {np.count_nonzero(np.bincount(targets[aside]))} of the {len(data.class_names)} classes",
    )
    return data.train.subset(stay), data.train.subset(aside)


def _stored_size(settings: DataSettings, source: Source) -> int:
    """The size of the first readable image: the size of the experiment where none is asked for."""
    reasons = []
    for index in range(min(len(source), 100)):
        try:
            first = read(source, index)
        except CorruptSample as error:
            reasons.append(str(error))
            continue
        if first.height != first.width or first.height > 128:
            raise UserError(
                f"data.image_size: not set, and {source.locate(index)} is {first.width} x {first.height} "
                "pixels; expected an image size in pixels for images that are not small squares, such as 224"
            )
        return first.height
    raise UserError(f"data.train: none of the first {len(reasons)} images can be read: {reasons[0]}")


def balanced_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples that stay and of those set aside, both ascending.

    Every class gives its own fraction, rounded so that the total is `round(fraction * N)`, but never its last
    sample; which of its samples go is decided by a hash of their positions.

    Args:
        targets: (N,) int64 classes, not negative.
        fraction: of the samples to set aside, in [0, 1).
    """
    counts = np.bincount(targets)
    quota = _apportion(counts, fraction)
    random = randomness.bits(torch.arange(len(targets)), seed=seed, epoch=0, streams=[0])[0].numpy()
    # By class, then by chance, then by position: as one key, a quarter of the time of a sort by two.
    order = np.argsort(targets << randomness.BITS | random, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(targets), dtype=np.int64)
    rank[order] = np.arange(len(targets)) - starts[targets[order]]
    aside = rank < quota[targets]
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def _apportion(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Whole numbers near `fraction * counts` that sum to the rounded total, by largest remainders."""
    exact = counts * fraction
    quota = np.floor(exact).astype(np.int64)
    missing = round(float(fraction * counts.sum())) - int(quota.sum())
    able = np.flatnonzero(quota + 1 < counts)
    quota[able[np.argsort((quota - exact)[able], kind="stable")[:missing]]] += 1
    return quota


def fingerprint(name: str, parts: Sequence[Source], image_size: int) -> str:
    """12 hex digits over every label, the order of the samples and three images of each split; over all of it where
    a source can tell (`Source.content`)."""
    digest = hashlib.sha256(f"{name} {image_size}".encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part.targets).data)
        digest.update(part.content())
        for index in sorted({0, len(part) // 2, len(part) - 1} if len(part) else set()):
            try:
                stored = part.encoded(index)
                digest.update(part.decode(index).tobytes() if stored is None else stored)
                if part.dense:
                    digest.update(part.mask(index).tobytes())
            except CorruptSample as error:
                digest.update(error.where.encode())
    return digest.hexdigest()[:12]
