"""MLflow's SQLite database and what its runs wrote, kept in a folder or behind a URI, and brought back.

The disk of a cluster's head ends with it. What was kept is brought to the next head, or to the machine one sits at.
Nothing of MLflow's is imported: this runs every ten minutes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from raytrain_speedup.scaling.storage import PathOrUri, open_storage
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.mlflow_sql import SQLITE

DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
"""Names of what is kept; ARTIFACTS is also that of the folder beside a database (`MlflowTracker`)."""

PLACES = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri")),
    *(("logged_models", "artifact_location"), ("model_versions", "storage_location")),
)
"""Columns with the absolute place of artifacts."""


def back_up(uri: str, target: PathOrUri) -> int | None:
    """Keep a database, as it is at one moment, with the files of its runs that changed since the last time.

    Runs may go on meanwhile. The database comes last and is exchanged whole, so a copy that broke off has lost
    nothing of the one before.

    Args:
        uri: sqlite:///FILE.
        target: a folder, or a URI such as s3://bucket/head; one database each.

    Returns:
        The number of files that were copied; None where there is no database yet.

    Raises:
        UserError: for another kind of tracker, or if the target cannot be written.
    """
    path = _file_of(uri)
    with _told(target, "written"):
        files, folder = open_storage(target)
        files.create_dir(folder)
        if not path.exists():
            return None
        kept = _kept(files, f"{folder}/{ARTIFACTS}")
        changed = [file for file in _artifacts(path) if not _same(file, kept.get(_name(path, file)))]
        for file in changed:
            goal = f"{folder}/{ARTIFACTS}/{_name(path, file)}"
            files.create_dir(goal.rpartition("/")[0])
            _copy(str(file), LocalFileSystem(), goal, files)
        with TemporaryDirectory() as temporary:
            copy = Path(temporary) / DATABASE
            with closing(_read_only(path)) as database, closing(sqlite3.connect(copy)) as into:
                database.backup(into)
            _copy(str(copy), LocalFileSystem(), f"{folder}/{DATABASE}.new", files)
            files.move(f"{folder}/{DATABASE}.new", f"{folder}/{DATABASE}")
    return len(changed) + 1


def bring_back(target: PathOrUri, uri: str) -> int | None:
    """Bring a kept database, and the files of its runs, to this machine, where their places are written anew.

    Args:
        target: of `back_up`.
        uri: sqlite:///FILE, which is not there yet.

    Returns:
        The number of files that were copied, 0 where nothing was kept; None where the file is there, and stays.

    Raises:
        UserError: for another kind of tracker, or if the target cannot be read.
    """
    path = _file_of(uri)
    if path.exists():
        return None
    with _told(target, "read"):
        files, folder = open_storage(target)
        bucket = folder.partition("/")[0]
        if bucket and files.get_file_info(bucket).type == FileType.NotFound:
            raise FileNotFoundError(f"there is no {bucket}")
        if files.get_file_info(f"{folder}/{DATABASE}").type != FileType.File:
            return 0
        kept = _kept(files, f"{folder}/{ARTIFACTS}")
        for name in kept:
            goal = path.parent / ARTIFACTS / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            _copy(f"{folder}/{ARTIFACTS}/{name}", files, str(goal), LocalFileSystem())
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as temporary:
            copy = Path(temporary) / DATABASE
            _copy(f"{folder}/{DATABASE}", files, str(copy), LocalFileSystem())
            _move_artifacts(copy, (path.parent / ARTIFACTS).as_uri())
            copy.replace(path)
    return len(kept) + 1


@contextmanager
def _told(target: PathOrUri, what: str) -> Iterator[None]:
    """What goes wrong there, in a line."""
    try:
        yield
    except (ArrowException, OSError, sqlite3.Error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{target}: cannot be {what} ({reason}); expected a folder or a URI such as s3://bucket/head"
        ) from error


def _file_of(uri: str) -> Path:
    if not uri.startswith(SQLITE):
        raise UserError(f"tracking uri {uri!r} is no file of this machine; expected sqlite:///FILE")
    return Path(uri.removeprefix(SQLITE)).absolute()


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)


def _artifacts(path: Path) -> list[Path]:
    return sorted(file for file in (path.parent / ARTIFACTS).rglob("*") if file.is_file())


def _name(path: Path, file: Path) -> str:
    return file.relative_to(path.parent / ARTIFACTS).as_posix()


def _kept(files: FileSystem, folder: str) -> Mapping[str, FileInfo]:
    """The files below a folder that may not be there."""
    found = files.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
    return {
        info.path.removeprefix(f"{folder}/"): info
        for info in found
        if info.type == FileType.File and info.size  # an object store may have an object for a folder
    }


def _same(file: Path, kept: FileInfo | None) -> bool:
    here = file.stat()
    if kept is None:
        return not here.st_size
    return kept.size == here.st_size and (kept.mtime_ns or 0) >= here.st_mtime_ns


def _copy(source: str, at: FileSystem, goal: str, into: FileSystem) -> None:
    copy_files(source, goal, source_filesystem=at, destination_filesystem=into)


def _move_artifacts(path: Path, place: str) -> None:
    """Write the place of every run's files anew: they are absolute, of the machine that they were written on."""
    mark = f"/{ARTIFACTS}/"
    with closing(sqlite3.connect(path)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in PLACES:
            if table in tables:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, instr({column}, ?) + ?)"
                    f" WHERE {column} LIKE 'file:%' AND instr({column}, ?) > 0",
                    (place, mark, len(mark) - 1, mark),
                )
