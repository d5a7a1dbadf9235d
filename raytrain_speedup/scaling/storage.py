"""Where checkpoints are: in a folder that all nodes see, or behind an address such as s3://bucket/runs.

Ray Train writes to either; an address is read through pyarrow, so it may say more than a path
(`s3://bucket/runs?endpoint_override=minio:9000`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from raytrain_speedup.settings import UserError

Place = str | Path


class RayCheckpoint(Protocol):
    """What is needed of a `ray.train.Checkpoint`."""

    path: str
    filesystem: FileSystem

    def to_directory(self) -> str: ...


def folder_of(checkpoint: RayCheckpoint) -> Path:
    """The checkpoint's own folder where this node sees it, else a copy of it."""
    if isinstance(checkpoint.filesystem, LocalFileSystem):
        return Path(checkpoint.path)  # `to_directory` would copy it to a temporary folder for every reader
    return Path(checkpoint.to_directory())


def is_address(place: Place) -> bool:
    """Whether it is no path of this machine."""
    return "://" in str(place)


def inside(place: Place, name: str) -> str:
    """The place of this name within another."""
    if not is_address(place):
        return str(Path(place) / name)
    address, mark, options = str(place).partition("?")
    return f"{address.rstrip('/')}/{name}{mark}{options}"


def parent_and_name(place: Place) -> tuple[str, str]:
    """A place as Ray takes it; a path is made absolute, for Ray's workers stand elsewhere."""
    if not is_address(place):
        path = Path(place).absolute()
        return str(path.parent), path.name
    address, mark, options = str(place).partition("?")
    parent, _, name = address.rstrip("/").rpartition("/")
    return parent + mark + options, name


def exists(place: Place) -> bool:
    """Whether there is such a folder.

    Raises:
        UserError: if the address leads nowhere.
    """
    if not is_address(place):
        return Path(place).is_dir()
    try:
        files, path = FileSystem.from_uri(str(place))
        return files.get_file_info(path).type == FileType.Directory
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{place}: no storage that can be reached ({reason}); expected a folder or an address such as "
            "s3://bucket/runs"
        ) from error


def may_hold_checkpoint(place: Place) -> bool:
    """Whether there is a checkpoint in a folder, this package's or Ray Train's; an address is not looked into."""
    return is_address(place) or any(Path(place).glob("checkpoint[-_][0-9]*"))
