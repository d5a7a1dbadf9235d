"""Folders of image files, one folder for each class, as ImageNet is usually unpacked; and folders as users have
them.

They have links, files of other kinds, names that are no UTF-8, and some that may not be read. What is passed
over is reported, and nothing is passed over because it could not be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain_speedup.data.base import Augment, CorruptSample, Dataset, DataSettings, Source
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.unreadable import log
from raytrain_speedup.settings import UserError

_KEY = "data.root"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_NAMES = 5  # of many, in a message


class ImageFolderSettings(DataSettings):
    """`root`/train/CLASS/FILE and `root`/test/CLASS/FILE, and `root`/val if the data have such a split.

    Without test/, or where it has no class folders (ImageNet's has no labels), val/ is the test split. With
    `test_fraction` there is no test/, and val/, if it is there, is the validation split.
    """

    source: Literal["imagefolder"] = "imagefolder"
    root: Path = Field(
        description="folder with train/ and test/, each with one folder a class, and perhaps val/; train/ and "
        "val/ alone, as ImageNet is unpacked: then val/ is the test split"
    )
    image_size: int = Field(224, ge=4, le=2048, description="image size the network sees, in pixels")
    augment: Augment = Field(
        "random-resized-crop", description="crop: shift by up to `padding`; crop-flip: and horizontal flip"
    )

    def read(self) -> Dataset:
        folders = {split: self.root / name for split, name in self._split_names().items()}
        classes = _class_folders(folders["train"])
        sources = {split: _scan(folder, classes) for split, folder in folders.items()}
        class_names = tuple(shown(name) for name in classes)
        return Dataset(sources["train"], sources.get("test"), class_names, val=sources.get("val"))

    def _split_names(self) -> dict[str, str]:
        """The folder's name for every split.

        Raises:
            UserError: if there is none for the training or the test split, or one for the latter too many.
        """
        present = {entry.name for entry in listed(_KEY, self.root) if is_folder(_KEY, entry)}
        labelled = {name for name in {"train", "test", "val"} & present if _class_folders(self.root / name)}
        names = self._held_back(labelled) if self.test_fraction else split_folders(labelled.__contains__)
        for name in names.values():
            if name not in labelled:
                raise UserError(
                    f"{_KEY}: there is no folder {name}/ with one folder for each class in "
                    f"{shown(self.root.absolute())}; expected train/ and test/, or train/ and val/, or train/ and "
                    "a data.test_fraction, such as 0.01, that is held back of it"
                )
        for name in sorted(present & {"test", "val"} - labelled):
            log.warning("%s: %s has no class folders in it and is not read", _KEY, shown(self.root / name))
        return names

    def _held_back(self, labelled: set[str]) -> dict[str, str]:
        """The folder's name for every split but the test split, which is held back of the training data."""
        if "test" in labelled:
            raise UserError(
                f"data.test_fraction: {self.test_fraction} is given, and there is {shown(self.root / 'test')}; "
                "expected null, or no such folder"
            )
        return {name: name for name in ("train", "val") if name == "train" or name in labelled}


class FolderSource(Source):
    """Image files, sorted by class and name.

    Args:
        folder: of the split.
        files: (N,) paths relative to it, as one NumPy array of bytes: no Python object per sample.
        targets: (N,) int64.
    """

    def __init__(self, folder: Path, files: np.ndarray, targets: np.ndarray) -> None:
        self.folder, self.files, self.targets = folder, files, targets

    def encoded(self, index: int) -> bytes:
        try:
            return self._path(index).read_bytes()
        except OSError as error:
            raise CorruptSample(index, self.locate(index), error.strerror or str(error)) from None

    def decode(self, index: int) -> np.ndarray:
        return decode(self.encoded(index), self, index)

    def locate(self, index: int) -> str:
        return shown(self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.files[index])


def _class_folders(folder: Path) -> list[str]:
    """The names of the folders in the folder of a split, sorted.

    Raises:
        UserError: if one of them cannot be read, or is a link to nothing: its class would be lost.
    """
    entries = listed(_KEY, folder)
    lost = [entry.path for entry in entries if entry.is_symlink() and not Path(entry.path).exists()]
    if lost:
        raise UserError(
            f"{_KEY}: {some(lost)} leads to nothing; expected the folder of a class behind the link"
        )
    return [entry.name for entry in entries if is_folder(_KEY, entry)]


def _scan(folder: Path, classes: list[str]) -> FolderSource:
    """The image files of a split.

    Raises:
        UserError: if it has a class that the training data have not, or a folder that cannot be read.
    """
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(
            f"{_KEY}: {shown(folder.absolute())} has the class '{shown(unknown[0])}', which train/ has not; "
            f"expected some of its {len(classes)} classes"
        )
    files: list[bytes] = []
    others = [entry.path for entry in listed(_KEY, folder) if not is_folder(_KEY, entry)]
    counts = np.zeros(len(classes), dtype=np.int64)
    outside = len(os.fsencode(folder)) + 1
    for target, name in enumerate(classes):
        before = len(files)
        if is_folder(_KEY, folder / name):
            found = image_files(_KEY, str(folder / name), others)
            files += [os.fsencode(path)[outside:] for path in found]
        counts[target] = len(files) - before
    tell_left_out(_KEY, folder, others)
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        log.warning(
            "%s: %d of the %d classes have no image in %s: %s",
            _KEY,
            len(empty),
            len(classes),
            shown(folder),
            some(empty),
        )
    return FolderSource(folder, np.array(files, dtype=bytes), np.repeat(np.arange(len(classes)), counts))


def is_image(name: str) -> bool:
    """Whether a file's suffix is that of an image."""
    return Path(name).suffix.lower() in _SUFFIXES


def shown(path: str | Path) -> str:
    """A path or name that can be printed and saved as UTF-8, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def new_folder(key: str, folder: Path) -> Iterator[None]:
    """A folder to write to, with nothing in it yet.

    Raises:
        UserError: if there is something in it, or it cannot be made; and where what is done within fails to write.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{key}: {shown(folder)} is there already; expected a new folder, or an empty one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{key}: {shown(folder)} cannot be written: {error.strerror or error}; expected a new folder, and "
            "space for it"
        ) from None


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(shown(name) for name in names[:_NAMES]) + more


def split_folders(has: Callable[[str], bool]) -> dict[str, str]:
    """The folder's name for every split.

    ImageNet is unpacked to train/ and val/, and its test/, if there is one, has no labels: then val/ is the test
    split, and a validation split is carved from the training data where one is asked for.

    Args:
        has: whether there is a folder of that name with labels in it.
    """
    if not has("val"):
        return {"train": "train", "test": "test"}
    if not has("test"):
        return {"train": "train", "test": "val"}
    return {name: name for name in ("train", "test", "val")}


def naming_the_split(example: str) -> Callable[[str], str]:
    """Checks a pattern of names in which `{split}` stands for the split's.

    Args:
        example: of such a pattern, for the message.
    """

    def check(pattern: str) -> str:
        if "{split}" not in pattern:
            raise ValueError(f"expected '{{split}}' in it, such as {example}")
        return pattern

    return check


def listed(key: str, folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name.

    Args:
        key: of the settings, for the message.

    Raises:
        UserError: if there is no such folder, or it may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{key}: there is no folder {shown(Path(folder).absolute())}; expected one") from None
    except OSError as error:
        raise _unreadable(key, Path(folder), error) from None


def is_folder(key: str, place: os.DirEntry[str] | Path) -> bool:
    """Whether a place, or what a link there leads to, is a folder; False where there is nothing.

    Raises:
        UserError: if that cannot be found out.
    """
    try:
        return place.is_dir()
    except OSError as error:
        raise _unreadable(key, Path(place), error) from None


def image_files(
    key: str, folder: str, others: list[str], above: tuple[os.stat_result, ...] = ()
) -> Iterator[str]:
    """Paths of the image files in a folder and in those below it, links followed, in a fixed order.

    Args:
        key: of the settings, for messages.
        others: gets the paths of the files that are no images by their suffix.
        above: the folders that led here.

    Raises:
        UserError: if a folder may not be read, or a link leads back to one that it is in.
    """
    entries, here = listed(key, folder), Path(folder).stat()
    if any(os.path.samestat(here, other) for other in above):
        raise UserError(
            f"{key}: the link {shown(folder)} leads back to a folder that it is in; expected no circles"
        )
    folders = []
    for entry in entries:
        if is_folder(key, entry):
            folders.append(entry.path)
        elif is_image(entry.name):
            yield entry.path
        else:
            others.append(entry.path)
    for inner in folders:
        yield from image_files(key, inner, others, (*above, here))


def tell_left_out(key: str, folder: str | Path, others: Sequence[str]) -> None:
    """Name in the log what a folder holds beside the data, in one line."""
    if others:
        log.warning(
            "%s: left out %d files in %s, which are in no class or no images by their names: %s",
            key,
            len(others),
            shown(folder),
            some([os.path.relpath(other, folder) for other in others]),
        )


def _unreadable(key: str, path: Path, error: OSError) -> UserError:
    return UserError(
        f"{key}: {shown(path.absolute())} cannot be read: {error.strerror}; expected to be let in"
    )
