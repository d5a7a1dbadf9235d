"""A data set of the user's own: a function in Python that gives a map-style data set for each split.

    def make(split: str, root: str = "scans") -> torch.utils.data.Dataset | None:
        ...                                     # split is "train", "val" or "test"; None: no validation split

    data: {source: python, dataset: "my_package.data:make", options: {root: /data/scans}}

Each item is (image, target). The image may be a PIL image, a uint8 array (H, W) or (H, W, C), or a tensor
(C, H, W), uint8 or float from 0 to 1. The target is a class, or a mask (H, W) of classes as a PIL image,
array or tensor. Images come as they are stored: normalisation (`data.mean`, `data.std`) and augmentation
(`data.augment`) are the platform's, since a curriculum changes what is shown of an image and a loader may
keep it decoded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from rich.progress import track
from torch import Tensor

from raytrain_speedup.data.base import IGNORE_INDEX, CorruptSample, Dataset, DataSettings, Source
from raytrain_speedup.data.unreadable import log
from raytrain_speedup.settings import UserError
from raytrain_speedup.user_code import OwnCall, what_happened

_LONG = 5000
"""Items from which on reading all targets shows a progress bar."""

_one_at_a_time = threading.Lock()
"""The device loader decodes in threads; a data set that reads from one open file may not survive that."""


class PythonSettings(DataSettings):
    """A data set that Python code gives."""

    source: Literal["python"] = "python"
    dataset: str = Field(
        description="import path of what gives the data set of a split, such as my_package.data:make; called with "
        "`split` (train, val or test; None for val: there is none) and the options"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="further keyword arguments of `dataset`"
    )
    classes: int | tuple[str, ...] | None = Field(
        None,
        description="the classes: how many, or their names; default: the data set's own `classes`, else as many "
        "as the targets have (with masks it has to be said)",
    )

    @property
    def call(self) -> OwnCall:
        """What makes the data set of a split."""
        return OwnCall("data.dataset", self.dataset, self.options, "data.options")

    def check_code(self) -> None:
        self.call.check("split")

    def read(self) -> Dataset:
        made = {split: self._made(split) for split in ("train", "val", "test")}
        sets = {split: dataset for split, dataset in made.items() if dataset is not None}
        first = _first_item(sets["train"], self.dataset)
        channels, dense = pixels(first[0]).shape[2], _is_mask(first[1])
        names = self._class_names(sets["train"])
        if dense and names is None:
            raise UserError(
                "data.classes: not set, and the targets are masks; expected how many classes they have"
            )
        sources = {
            split: PythonSource(
                dataset,
                np.zeros(len(dataset), dtype=np.int64) if dense else read_targets(dataset, self._name(split)),
                self._name(split),
                channels=channels,
                num_classes=len(names) if dense and names is not None else None,
            )
            for split, dataset in sets.items()
        }
        if names is None:
            last = max(int(source.targets.max(initial=0)) for source in sources.values())
            names = tuple(str(number) for number in range(last + 1))
        for source in sources.values():
            _check_range(source, len(names))
        return Dataset(sources["train"], sources["test"], names, val=sources.get("val"), channels=channels)

    def _name(self, split: str) -> str:
        return f"{self.dataset} ({split})"

    def _made(self, split: str) -> Any:
        dataset = self.call({"split": split})
        if dataset is None and split == "val":
            return None
        streamed = isinstance(dataset, torch.utils.data.IterableDataset)  # it may have a length all the same
        if streamed or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UserError(
                f"data.dataset: {self.dataset}(split={split!r}) gives a {type(dataset).__name__}; expected a "
                "map-style data set, with __len__ and __getitem__: pruning asks for samples by their position"
            )
        if not len(dataset):
            raise UserError(f"data.dataset: {self._name(split)} has no samples; expected at least one")
        return dataset

    def _class_names(self, dataset: Any) -> tuple[str, ...] | None:
        classes = self.classes if self.classes is not None else getattr(dataset, "classes", None)
        if isinstance(classes, int):
            return tuple(str(number) for number in range(classes))
        return None if classes is None else tuple(str(name) for name in classes)


class PythonSource(Source):
    """A map-style data set of one split.

    Args:
        dataset: gives (image, target) for a position.
        targets: (N,) int64.
        name: for messages.
        channels: of every image.
        num_classes: of the pixels, where targets are masks.
    """

    def __init__(
        self, dataset: Any, targets: np.ndarray, name: str, *, channels: int, num_classes: int | None = None
    ) -> None:
        self.dataset, self.targets, self.name = dataset, targets, name
        self.channels, self.num_classes = channels, num_classes
        self.dense = num_classes is not None
        self._last: tuple[int, Any] = (-1, None)

    def decode(self, index: int) -> np.ndarray:
        item = self._item(index)
        try:
            image = pixels(item[0], self.channels)
        except ValueError as error:
            raise CorruptSample(index, self.locate(index), str(error)) from None
        if image.shape[2] != self.channels:
            why = f"the image has {image.shape[2]} channels; expected {self.channels}, as the first one"
            raise CorruptSample(index, self.locate(index), why)
        if self.dense:
            self._last = (index, item)  # the mask is asked for next
        return image

    def mask(self, index: int) -> np.ndarray:
        assert self.num_classes is not None
        last, item = self._last
        target = item[1] if last == index else self._item(index)[1]
        mask = np.asarray(target)
        if mask.ndim != 2:
            raise CorruptSample(
                index, self.locate(index), f"its mask is of shape {mask.shape}; expected (H, W)"
            )
        wrong = (mask != IGNORE_INDEX) & ((mask < 0) | (mask >= self.num_classes))
        if wrong.any():
            why = f"its mask holds {mask[wrong][0]}; expected 0 to {self.num_classes - 1}, or {IGNORE_INDEX}"
            raise CorruptSample(index, self.locate(index), why)
        return mask.astype(np.uint8)

    def locate(self, index: int) -> str:
        return f"{self.name} sample {index}"

    def _item(self, index: int) -> Any:
        try:
            return item_of(self.dataset, index)
        except Exception as error:  # whatever the user's code raises for a sample that it cannot read
            raise CorruptSample(index, self.locate(index), what_happened(error)) from None


def item_of(dataset: Any, index: int) -> tuple[Any, Any]:
    """(image, target) at a position.

    Raises:
        ValueError: if it is no such pair.
        Exception: whatever the data set raises.
    """
    with _one_at_a_time:
        item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        found = f"{len(item)} values" if isinstance(item, (tuple, list)) else f"a {type(item).__name__}"
        raise ValueError(f"it is {found}; expected a pair, (image, target)")
    return item[0], item[1]


def pixels(image: Any, channels: int | None = None) -> np.ndarray:
    """An image in one of the allowed forms as (H, W, C) uint8.

    Args:
        image: a PIL image; a uint8 array (H, W) or (H, W, C); or a tensor (C, H, W), uint8, or float from 0
            to 1, which is rounded to 8 bits.
        channels: of the data set, to which a PIL image is converted; its own, gray or colour, by default.

    Raises:
        ValueError: if it is anything else.
    """
    if isinstance(image, Image.Image):
        gray = channels == 1 if channels is not None else image.mode in ("1", "L")
        array = np.asarray(image.convert("L" if gray else "RGB"))
    elif isinstance(image, Tensor):
        array = _planes_last(image)
    else:
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise ValueError(
                f"the image is a {type(image).__name__} of {array.dtype}; expected a PIL image, a uint8 array or "
                "a tensor"
            )
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or not 1 <= array.shape[2] <= 32:
        raise ValueError(
            f"the image is of shape {tuple(array.shape)}; expected (H, W) or (H, W, C), or a tensor (C, H, W)"
        )
    return np.ascontiguousarray(array)


def _planes_last(image: Tensor) -> np.ndarray:
    if image.dim() != 3:
        raise ValueError(f"the image is a tensor of shape {tuple(image.shape)}; expected (C, H, W)")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"the image holds {low:.3g} to {high:.3g}; expected 0 to 1: data.mean and data.std normalise it"
            )
        image = (image * 255).round().to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise ValueError(f"the image is a tensor of {image.dtype}; expected uint8, or float from 0 to 1")
    return image.permute(1, 2, 0).numpy()


def read_targets(dataset: Any, name: str) -> np.ndarray:
    """The class of every sample, (N,) int64: without decoding an image where the data set knows them.

    A sample that cannot be read counts as one of class 0 here, and is left out when it is shown.

    Raises:
        UserError: if they are no classes, or not as many as samples, or not those of the items.
    """
    known = known_targets(dataset)
    targets = _each_target(dataset, name) if known is None else known
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        shown = f"{targets.dtype} of shape {targets.shape}"
        raise UserError(
            f"data.dataset: the targets of {name} are {shown}; expected a class, an int, for each"
        )
    if len(targets) != len(dataset):
        counts = f"{len(dataset)} samples and {len(targets)} targets"
        raise UserError(f"data.dataset: {name} has {counts}; expected one each")
    if known is not None:
        _check_agreement(dataset, targets, name)
    return targets.astype(np.int64)


def known_targets(dataset: Any) -> np.ndarray | None:
    """The targets that a data set tells without decoding images: its attribute `targets`, those of a
    `TensorDataset`, or those of the data set that a `Subset` is of."""
    if isinstance(dataset, torch.utils.data.Subset):
        whole = known_targets(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices)]
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return dataset.tensors[-1].numpy()
    targets = getattr(dataset, "targets", None)
    return None if targets is None else np.asarray(targets)


def _each_target(dataset: Any, name: str) -> np.ndarray:
    log.warning("reading every sample of %s for its target; an attribute `targets` would spare that", name)
    quiet = len(dataset) < _LONG or not sys.stderr.isatty()
    console, title = Console(stderr=True), f"targets of {name}"
    targets: list[Any] = []
    for index in track(range(len(dataset)), title, console=console, transient=True, disable=quiet):
        try:
            target = _class_of(item_of(dataset, index)[1])
        except Exception:  # it is reported when it is to be shown
            target = 0
        if not isinstance(target, int):
            where = f"{name} sample {index}"
            raise UserError(f"data.dataset: {where} has the target {target!r}; expected a class, an int")
        targets.append(target)
    return np.asarray(targets)


def _class_of(target: Any) -> Any:
    """A class that is a tensor or of NumPy's as a plain number."""
    single = isinstance(target, Tensor | np.ndarray | np.generic) and np.asarray(target).size == 1
    return target.item() if single else target


def _check_agreement(dataset: Any, targets: np.ndarray, name: str) -> None:
    """A data set may change targets on their way out, as torchvision's `target_transform` does."""
    for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        try:
            found = _class_of(item_of(dataset, index)[1])
        except Exception:  # it is reported when it is to be shown
            continue
        if found != targets[index]:
            raise UserError(
                f"data.dataset: {name} sample {index} has the target {found!r}, and {targets[index]} in `targets`; "
                "expected the same"
            )


def _check_range(source: PythonSource, num_classes: int) -> None:
    low, high = int(source.targets.min(initial=0)), int(source.targets.max(initial=0))
    if low < 0 or high >= num_classes:
        found = low if low < 0 else high
        expected = f"expected classes 0 to {num_classes - 1}"
        raise UserError(f"data.dataset: {source.name} has a target {found}; {expected}")


def _first_item(dataset: Any, path: str) -> tuple[Any, Any]:
    """The first item that can be read: it says what all are like, and has to be the same when read again."""
    reasons = []
    for index in range(min(len(dataset), 100)):
        try:
            item, again = item_of(dataset, index), item_of(dataset, index)
            same = np.array_equal(pixels(item[0]), pixels(again[0]))
        except Exception as error:
            reasons.append(str(error) if isinstance(error, ValueError) else what_happened(error))
            continue
        if not same:
            raise UserError(
                f"data.dataset: {path} (train) sample {index} is another image whenever it is read; expected it "
                "as it is stored: data.augment varies it"
            )
        return item
    raise UserError(
        f"data.dataset: none of the first {len(reasons)} samples of {path} (train) can be read: {reasons[0]}"
    )


def _is_mask(target: Any) -> bool:
    if isinstance(target, Image.Image):
        return True
    return isinstance(target, Sequence | np.ndarray | Tensor) and np.asarray(target).ndim == 2
