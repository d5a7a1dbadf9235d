"""Where runs are: in a folder that all nodes see, or behind a URI such as s3://bucket/runs.

A URI is read through pyarrow, so it may say more than a path (`s3://bucket/runs?endpoint_override=minio:9000`).
"""

from __future__ import annotations

import re
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from raytrain_speedup.settings import UserError

PathOrUri = str | Path

RUN_ID = "run-id"
"""In a run's folder: what the tracker calls it."""


def is_uri(target: PathOrUri) -> bool:
    """Whether it is no path of this machine."""
    return "://" in str(target)


def inside(target: PathOrUri, name: str) -> str:
    """The target of this name within another."""
    if not is_uri(target):
        return str(Path(target) / name)
    uri, mark, options = str(target).partition("?")
    return f"{uri.rstrip('/')}/{name}{mark}{options}"


def folder_name(name: str) -> str:
    """A run's name as the name of one folder: a run called `../../x` stays inside its storage."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "run"


def parent_and_name(target: PathOrUri) -> tuple[str, str]:
    """A target as Ray takes it; a path is made absolute, for Ray's workers stand elsewhere."""
    if not is_uri(target):
        path = Path(target).absolute()
        return str(path.parent), path.name
    uri, mark, options = str(target).partition("?")
    parent, _, name = uri.rstrip("/").rpartition("/")
    return parent + mark + options, name


def exists(target: PathOrUri) -> bool:
    """Whether there is such a folder.

    Raises:
        UserError: if the URI leads nowhere.
    """
    if not is_uri(target):
        return Path(target).is_dir()
    try:
        files, path = FileSystem.from_uri(str(target))
        return files.get_file_info(path).type == FileType.Directory
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{target}: no storage that can be reached ({reason}); expected a folder or a URI such as "
            "s3://bucket/runs"
        ) from error


def may_hold_checkpoint(target: PathOrUri) -> bool:
    """Whether there is a checkpoint in a folder; a URI is not looked into."""
    return is_uri(target) or any(Path(target).glob("checkpoint-[0-9]*"))


def keep_run_id(folder: PathOrUri, run_id: str) -> None:
    """Keep the tracker's id of a run with its checkpoints, so that a run that is resumed is the same one there.

    Raises:
        UserError: if nothing can be written there.
    """
    try:
        write_text(folder, RUN_ID, run_id)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: cannot be written ({reason}); expected a folder or a URI such as s3://bucket/runs "
            "(scaling.storage)"
        ) from error


def kept_run_id(folder: PathOrUri) -> str | None:
    """The tracker's id of the run that was begun in a folder, if any."""
    try:
        return read_text(folder, RUN_ID)
    except (ArrowException, OSError):
        return None


def write_text(folder: PathOrUri, name: str, text: str) -> None:
    """Write a small file into a folder, which is made if need be; raises what pyarrow and the system do."""
    files, path = open_storage(folder)
    files.create_dir(path)
    with files.open_output_stream(f"{path}/{name}") as file:
        file.write(text.encode())


def read_text(folder: PathOrUri, name: str) -> str:
    """A small file of a folder; raises what pyarrow and the system do."""
    files, path = open_storage(folder)
    with files.open_input_stream(f"{path}/{name}") as file:
        return file.read().decode()


def open_storage(folder: PathOrUri) -> tuple[FileSystem, str]:
    """The file system that a folder or URI is on, and the path there."""
    if not is_uri(folder):
        return LocalFileSystem(), str(Path(folder).absolute())
    return FileSystem.from_uri(str(folder))
