"""Where the files of a Ray checkpoint are."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pyarrow.fs import FileSystem, LocalFileSystem


class RayCheckpoint(Protocol):
    """What Ray Train's checkpoints and Tune's have in common."""

    path: str
    filesystem: FileSystem

    def to_directory(self) -> str: ...


def folder_of(checkpoint: RayCheckpoint) -> Path:
    """The checkpoint's own folder where this node sees it, else a copy of it."""
    if isinstance(checkpoint.filesystem, LocalFileSystem):
        return Path(checkpoint.path)  # `to_directory` would copy it to a temporary folder for every reader
    return Path(checkpoint.to_directory())
