"""Making an index (`shards.py`) of tar files, of Parquet files, or of class folders of image files, on disks or in
object storage.

The class of a sample is, in this order: what a file of labels says of it; the name of the inner tar file it is in,
or of its own tar file where that is a WordNet ID, as ImageNet's are; the content of its neighbour `.cls`, as in
WebDataset's shards; the name of its folder. Parquet files have a column of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np
from rich.progress import Progress

from raytrain_speedup.data.folders import image_files, is_folder, is_image, listed, shown, some, tell_left_out
from raytrain_speedup.data.index.devkit import devkit_labels
from raytrain_speedup.data.index.object_store import Stat, is_remote, list_objects, read_here, stat_object
from raytrain_speedup.data.index.parquet_scan import ParquetJob, scan_parquet
from raytrain_speedup.data.index.shards import Index
from raytrain_speedup.data.index.tar_scan import Rows, TarJob, scan_tars
from raytrain_speedup.data.index.writing import KEY, ShardRows, check_place, write_index
from raytrain_speedup.settings import UserError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")
_PARQUET = ".parquet"
_WHOLE_FOLDER = "."
_WORDNET_ID = re.compile(r"n\d{8}")
_STORE_PROCESSES = 16  # they wait for the network, not for a core


def make_index(
    source: Path | str | Found,
    folder: Path,
    *,
    labels: Path | None = None,
    image_column: str = "image",
    label_column: str = "label",
    processes: int | None = None,
    pool: Executor | None = None,
    progress: Progress | None = None,
) -> Index:
    """Index tar files, Parquet files, or a folder with a folder of images for each class.

    Args:
        source: a tar or Parquet file, a folder of them, or a folder of class folders; or the URI of one of these.
            A * in the last name stands for any: `data/train-*.parquet`. Or what `find_files` found of one of these.
        folder: where the index goes; one that is there is replaced, and anything else refused.
        labels: a text file with a sample's file name and its class in every line; or ILSVRC2012's development kit.
        image_column, label_column: of Parquet files.
        processes: that read files at the same time; default: one for each core, and 16 for a store.
        pool: that reads files in place of processes of this machine, such as tasks of a cluster.
        progress: shows how far it is.

    Raises:
        UserError: if there is nothing to index, a tar file is compressed or cut off, a sample has no class, or the
            folder cannot be written.
    """
    check_place(folder)
    known = _read_labels(labels) if labels else {}
    found = source if isinstance(source, Found) else find_files(str(source))
    remote = is_remote(found.root)
    class_names = None
    if found.tars:
        tar_jobs = [_tar_job(found.root, name, known, found.stats.get(name)) for name in found.tars]
        with _reading(pool, processes, remote=remote) as readers:
            parts = scan_tars(tar_jobs, readers, progress)
    elif found.parquet:
        if labels:
            raise UserError(
                f"{KEY}: --labels: {shown(found.where)} has classes in a column; expected --label-column"
            )
        jobs = found.parquet_jobs(image_column, label_column)
        with _reading(pool, processes, remote=remote) as readers:
            parts, class_names = scan_parquet(jobs, readers, progress)
    elif remote:
        parts = [_loose(found.root, found.stats, known)]
    else:
        parts = _class_folders(Path(found.root), known, progress)
    if not sum(len(part.label) for part in parts):
        raise UserError(
            f"{KEY}: {shown(found.where)} has neither tar or Parquet files with images nor class folders; expected "
            "one of these"
        )
    return write_index(folder, found.root, parts, class_names)


@contextmanager
def _reading(pool: Executor | None, processes: int | None, *, remote: bool) -> Iterator[Executor]:
    """What reads files: a pool that is given, or processes that end with it."""
    if pool is not None:
        yield pool
        return
    number = processes or (_STORE_PROCESSES if remote else os.cpu_count() or 1)
    try:
        with ProcessPoolExecutor(number, initializer=read_here if remote else None) as own:
            yield own
    except BrokenExecutor:
        raise UserError(
            f"{KEY}: a process that read files died; expected memory for {number} of them (--processes), and files "
            "that are not encrypted"
        ) from None


def _read_labels(path: Path) -> dict[str, str]:
    """`NAME CLASS` in every line; a name may have folders before it, which are not looked at."""
    if path.name.endswith((".tar", *_COMPRESSED)):
        return devkit_labels(path, KEY)
    known = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{KEY}: --labels: cannot read {shown(path)}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace(",", " ").rpartition(" ")
        if not name:
            raise UserError(
                f"{KEY}: --labels: line {number} of {shown(path)} is {line!r}; expected NAME CLASS"
            )
        known[PurePosixPath(name.strip()).name] = label
    return known


@dataclass(frozen=True)
class Found:
    """The files of a source.

    Attributes:
        root: folder or URI that the names are below.
        tars, parquet: the files; where both are empty, there may be loose files.
        stats: of the objects of a store, loose ones as well.
        where: what holds them, for messages.
    """

    root: str
    tars: Sequence[str]
    parquet: Sequence[str]
    stats: Mapping[str, Stat]
    where: str

    def parquet_jobs(self, image_column: str, label_column: str) -> list[ParquetJob]:
        """The Parquet files, with the columns that are read."""
        return [
            ParquetJob(self.root, name, image_column, label_column, self.stats.get(name))
            for name in self.parquet
        ]


def find_files(source: str) -> Found:
    """The tar or Parquet files that a source is, holds, or chooses by a * in its last name.

    Raises:
        UserError: if there is no such place, or tar files are compressed.
    """
    return _in_store(source) if is_remote(source) else _on_disk(Path(source))


def _found(
    root: str, names: Sequence[str], where: str, stats: Mapping[str, Stat], *, loose: bool = False
) -> Found:
    """By the names of files; compressed tar files are refused.

    Args:
        loose: there may be class folders as well: Parquet files beside them, or beside tar files, are of something
            else.
    """
    packed = [name for name in names if name.endswith(_COMPRESSED)]
    if packed:
        raise UserError(
            f"{KEY}: {some(packed)} in {shown(where)} are compressed, and nothing in them can be read by its "
            "position; expected plain .tar files (gunzip them: JPEGs do not become larger)"
        )
    tars, parquet = ([name for name in names if name.endswith(suffix)] for suffix in (".tar", _PARQUET))
    return Found(root, tars, [] if tars or loose else parquet, stats, where)


def _require_some(names: Sequence[str], pattern: str, where: str) -> None:
    if not any(name.endswith((".tar", *_COMPRESSED, _PARQUET)) for name in names):
        raise UserError(f"{KEY}: no tar or Parquet file in {shown(where)} is called {pattern}; expected some")


def _tar_job(root: str, name: str, known: Mapping[str, str], stat: Stat | None = None) -> TarJob:
    """A tar file to scan: of one class, where it is one of ImageNet's inner ones by its name."""
    found = _WORDNET_ID.fullmatch(PurePosixPath(name).stem)
    return TarJob(root, name, known, stat, inside=found.group() if found else "")


# --- on disks ------------------------------------------------------------------------------------------------


def _on_disk(source: Path) -> Found:
    if source.is_file():
        if not source.name.endswith((".tar", *_COMPRESSED, _PARQUET)):
            raise UserError(f"{KEY}: {shown(source)} is no .tar or .parquet file; expected one, or a folder")
        return _found(str(source.parent.absolute()), [source.name], str(source), {})
    chosen = "*" in source.name and not source.exists()
    if not chosen and not source.exists():
        raise UserError(
            f"{KEY}: there is no {shown(source.absolute())}; expected tar files, Parquet files or class folders"
        )
    folder = source.parent if chosen else source
    entries = [e for e in listed(KEY, folder) if not chosen or fnmatchcase(e.name, source.name)]
    files = [entry.name for entry in entries if not is_folder(KEY, entry)]
    if chosen:
        _require_some(files, source.name, str(folder))
    folders = {entry.name for entry in entries if not entry.name.startswith(".")} - set(files)
    return _found(str(folder.absolute()), files, str(folder), {}, loose=bool(folders) and not chosen)


def _class_folders(source: Path, known: Mapping[str, str], progress: Progress | None) -> list[ShardRows]:
    folders = [entry.name for entry in listed(KEY, source) if is_folder(KEY, entry)]
    jobs = [_ClassJob(str(source.absolute()), name, known) for name in folders or [_WHOLE_FOLDER]]
    threads = min(32, 4 * (os.cpu_count() or 1))  # they wait for the file system, not for a core
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(_scan_folder, jobs)
        if progress is None:
            return list(found)
        return list(progress.track(found, total=len(jobs), description="indexing"))


@dataclass(frozen=True)
class _ClassJob:
    root: str
    name: str
    known: Mapping[str, str]


def _scan_folder(job: _ClassJob) -> ShardRows:
    """One class, folders in it included; every file is a shard of its own."""
    names, stats, rows = [], [], Rows()
    others: list[str] = []
    folder = Path(job.root) / job.name
    for path in image_files(KEY, str(folder), others):
        label = job.known.get(Path(path).name) or job.name.removeprefix(_WHOLE_FOLDER)
        if not label:
            raise _classless(path)
        try:
            status = Path(path).stat()
        except OSError as error:
            raise UserError(
                f"{KEY}: {shown(path)} cannot be read: {error.strerror}; expected a file"
            ) from None
        names.append(os.path.relpath(path, job.root))
        stats.append(Stat(status.st_size, status.st_mtime_ns, 0))
        rows.add(0, status.st_size, label)
    tell_left_out(KEY, folder, others)
    return rows.of(names, stats, np.arange(len(names)))


def _classless(path: str) -> UserError:
    return UserError(
        f"{KEY}: {shown(path)} is in no class folder and has no line in --labels; expected its class in one of them"
    )


# --- in object storage ---------------------------------------------------------------------------------------


def _in_store(source: str) -> Found:
    """Of loose files the listing says it all."""
    root, _, name = source.rstrip("/").rpartition("/")
    if name.endswith((".tar", *_COMPRESSED, _PARQUET)) and "*" not in name:
        return _found(
            root, [name], root, {} if name.endswith(_COMPRESSED) else {name: stat_object(root, name)}
        )
    if "*" not in name:
        root = f"{root}/{name}"
    objects = dict(list_objects(root))
    here = [path for path in objects if "/" not in path]
    if "*" in name:
        here = [path for path in here if fnmatchcase(path, name)]
        _require_some(here, name, root)
    loose = "*" not in name and any("/" in path and is_image(path) for path in objects)
    return _found(root, here, root, objects, loose=loose)


def _loose(root: str, objects: Mapping[str, Stat], known: Mapping[str, str]) -> ShardRows:
    images, rows = [name for name in objects if is_image(name)], Rows()
    for name in images:
        path = PurePosixPath(name)
        label = known.get(path.name) or (path.parts[0] if len(path.parts) > 1 else "")
        if not label:
            raise _classless(f"{root}/{name}")
        rows.add(0, objects[name].size, label)
    tell_left_out(KEY, root, [f"{root}/{name}" for name in objects if not is_image(name)])
    return rows.of(images, [objects[name] for name in images], np.arange(len(images)))
