"""Making an index (`shards.py`) of tar files, or of class folders of image files, on disks or in object storage.

The class of a sample is, in this order: what a file of labels says of it; the name of the inner tar file it is in,
or of its own tar file where that is a WordNet ID, as ImageNet's are; the content of its neighbour `.cls`, as in
WebDataset's shards; the name of its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from rich.progress import Progress

from raytrain_speedup.data.devkit import devkit_labels
from raytrain_speedup.data.folders import image_files, is_folder, is_image, listed, shown, some, tell_left_out
from raytrain_speedup.data.object_store import Stat, is_remote, list_objects, read_here, stat_object
from raytrain_speedup.data.shards import Index, ShardRows, write_index
from raytrain_speedup.data.tar_scan import KEY, Rows, TarJob, scan_tars
from raytrain_speedup.settings import UserError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")
_WHOLE_FOLDER = "."
_WORDNET_ID = re.compile(r"n\d{8}")
Reading = AbstractContextManager[Executor]

_STORE_PROCESSES = 16  # they wait for the network, not for a core


def make_index(
    source: Path | str,
    folder: Path,
    *,
    labels: Path | None = None,
    processes: int | None = None,
    pool: Executor | None = None,
    progress: Progress | None = None,
) -> Index:
    """Index tar files, or a folder with a folder of images for each class.

    Args:
        source: a tar file, a folder of tar files, or a folder of class folders; or the URI of one of these.
        folder: where the index goes; one that is there is replaced.
        labels: a text file with a sample's file name and its class in every line; or ILSVRC2012's development kit.
        processes: that read tar files at the same time; default: one for each core, and 16 for a store.
        pool: that reads tar files in place of processes of this machine, such as tasks of a cluster.
        progress: shows how far it is.

    Raises:
        UserError: if there is nothing to index, a tar file is compressed or cut off, or a sample has no class.
    """
    known = _read_labels(labels) if labels else {}
    if is_remote(str(source)):
        root, parts = _scan_store(
            str(source), known, _reading(pool, processes or _STORE_PROCESSES, read_here), progress
        )
    else:
        root, parts = _scan_disk(
            Path(source), known, _reading(pool, processes or os.cpu_count() or 1), progress
        )
    if not sum(len(part.label) for part in parts):
        raise UserError(
            f"{KEY}: {shown(source)} has neither tar files with images nor class folders; expected either"
        )
    return write_index(folder, root, parts)


@contextmanager
def _reading(
    pool: Executor | None, processes: int, initializer: Callable[[], None] | None = None
) -> Iterator[Executor]:
    """What reads tar files: a pool that is given, or processes that end with it."""
    if pool is not None:
        yield pool
        return
    with ProcessPoolExecutor(processes, initializer=initializer) as own:
        yield own


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


def _tars_among(names: Sequence[str], where: Path | str) -> list[str]:
    """The tar files among some names; compressed ones are refused."""
    packed = [name for name in names if name.endswith(_COMPRESSED)]
    if packed:
        raise UserError(
            f"{KEY}: {some(packed)} in {shown(where)} are compressed, and nothing in them can be read by its "
            "position; expected plain .tar files (gunzip them: JPEGs do not become larger)"
        )
    tars = [name for name in names if name.endswith(".tar")]
    if not tars and any(name.endswith(".parquet") for name in names):
        raise UserError(
            f"{KEY}: {shown(where)} is Parquet, in whose pages a sample has no bytes of its own; expected tar "
            f"files, as `speedup data pack {shown(where)} -o FOLDER` makes of it, or data.source=parquet instead"
        )
    return tars


def _tar_job(root: str, name: str, known: Mapping[str, str], stat: Stat | None = None) -> TarJob:
    """A tar file to scan: of one class, where it is one of ImageNet's inner ones by its name."""
    found = _WORDNET_ID.fullmatch(PurePosixPath(name).stem)
    return TarJob(root, name, known, stat, inside=found.group() if found else "")


# --- on disks ------------------------------------------------------------------------------------------------


def _scan_disk(
    source: Path, known: Mapping[str, str], reading: Reading, progress: Progress | None
) -> tuple[str, list[ShardRows]]:
    """The root, and what is in it."""
    if not source.exists():
        raise UserError(f"{KEY}: there is no {shown(source.absolute())}; expected tar files or class folders")
    single = source.is_file()
    tars = _tars_among([source.name] if single else [entry.name for entry in listed(KEY, source)], source)
    if single and not tars:
        raise UserError(f"{KEY}: {shown(source)} is no .tar file; expected one, or a folder")
    root = str((source.parent if single else source).absolute())
    if tars:
        with reading as pool:
            return root, scan_tars([_tar_job(root, name, known) for name in tars], pool, progress)
    folders = [entry.name for entry in listed(KEY, source) if is_folder(KEY, entry)]
    jobs = [_ClassJob(root, name, known) for name in folders or [_WHOLE_FOLDER]]
    threads = min(32, 4 * (os.cpu_count() or 1))  # they wait for the file system, not for a core
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(_scan_folder, jobs)
        if progress is None:
            return root, list(found)
        return root, list(progress.track(found, total=len(jobs), description="indexing"))


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


def _scan_store(
    source: str, known: Mapping[str, str], reading: Reading, progress: Progress | None
) -> tuple[str, list[ShardRows]]:
    """The root, and what is in it: of loose files the listing says it all."""
    root, _, name = source.rstrip("/").rpartition("/")
    if _tars_among([name], root):
        objects = {name: stat_object(root, name)}
    else:
        root = f"{root}/{name}"
        objects = dict(list_objects(root))
    tars = _tars_among([name for name in objects if "/" not in name], root)
    if not tars:
        return root, [_loose(root, objects, known)]
    jobs = [_tar_job(root, name, known, objects[name]) for name in tars]
    with reading as pool:
        return root, scan_tars(jobs, pool, progress)


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
