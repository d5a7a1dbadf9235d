"""Folders as users have them: with links, with files of other kinds, with names that are no UTF-8, and with some
that may not be read. What is passed over is reported, and nothing is passed over because it could not be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from raytrain_speedup.data.skipped import log
from raytrain_speedup.settings import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_NAMES = 5


def is_image(name: str) -> bool:
    """Whether a file's suffix is that of an image."""
    return Path(name).suffix.lower() in _SUFFIXES


def shown(path: str | Path) -> str:
    """A path or name that can be printed and saved as UTF-8, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


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
