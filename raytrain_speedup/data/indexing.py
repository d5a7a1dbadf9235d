"""Making an index of tar files, or of a folder of image files (`shards.py`).

Of a tar file the headers alone are read. Tar files within tar files, as ImageNet comes, are looked into: the whole
of ImageNet-22K is indexed as it was downloaded, without unpacking a byte.

The class of a sample is, in this order: what a file of labels says of it; the name of the inner tar file it is in;
the content of its neighbour `.cls`, as in WebDataset's shards; the name of its folder.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from rich.progress import Progress

from raytrain_speedup.data.folders import image_files, is_folder, is_image, listed, shown, some, tell_left_out
from raytrain_speedup.data.shards import Index, ShardRows, write_index
from raytrain_speedup.settings import UserError

_KEY = "data index"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")
_WHOLE_FOLDER = "."


def make_index(
    source: Path,
    folder: Path,
    *,
    labels: Path | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Index:
    """Index tar files, or a folder with a folder of images for each class.

    Args:
        source: a tar file, a folder of tar files, or a folder of class folders.
        folder: where the index goes; one that is there is replaced.
        labels: a text file with a sample's file name and its class in every line.
        processes: that read tar files at the same time; default: one for each core.
        progress: shows how far it is.

    Raises:
        UserError: if there is nothing to index, a tar file is compressed or cut off, or a sample has no class.
    """
    known = _read_labels(labels) if labels else {}
    tars = _tar_files(source)
    if tars:
        root, names = (
            (source, [path.name for path in tars]) if source.is_dir() else (source.parent, [source.name])
        )
        jobs = [_Job(str(root.absolute()), name, known) for name in names]
        with ProcessPoolExecutor(min(processes or os.cpu_count() or 1, len(jobs))) as pool:
            parts = _all(pool, _scan_tar, jobs, progress)
    else:
        root = source
        folders = [entry.name for entry in listed(_KEY, source) if is_folder(_KEY, entry)]
        jobs = [_Job(str(root.absolute()), name, known) for name in folders or [_WHOLE_FOLDER]]
        threads = min(32, 4 * (os.cpu_count() or 1))  # they wait for the file system, not for a core
        with ThreadPoolExecutor(threads) as pool:
            parts = _all(pool, _scan_folder, jobs, progress)
    if not sum(len(part.label) for part in parts):
        raise UserError(
            f"{_KEY}: {shown(source)} has neither tar files with images nor class folders; expected either"
        )
    return write_index(folder, str(root.absolute()), parts)


@dataclass(frozen=True)
class _Job:
    root: str
    name: str
    known: Mapping[str, str]


def _all(pool: Executor, scan: Any, jobs: Sequence[_Job], progress: Progress | None) -> list[ShardRows]:
    found = pool.map(scan, jobs)
    if progress is None:
        return list(found)
    return list(progress.track(found, total=len(jobs), description="indexing"))


def _tar_files(source: Path) -> list[Path]:
    if not source.exists():
        raise UserError(
            f"{_KEY}: there is no {shown(source.absolute())}; expected tar files or class folders"
        )
    paths = [source] if source.is_file() else sorted(Path(entry.path) for entry in listed(_KEY, source))
    packed = [path.name for path in paths if path.name.endswith(_COMPRESSED)]
    if packed:
        raise UserError(
            f"{_KEY}: {some(packed)} in {shown(source)} are compressed, and nothing in them can be read by its "
            "position; expected plain .tar files (gunzip them: JPEGs do not become larger)"
        )
    tars = [path for path in paths if path.suffix == ".tar"]
    if source.is_file() and not tars:
        raise UserError(f"{_KEY}: {shown(source)} is no .tar file; expected one, or a folder")
    return tars


def _read_labels(path: Path) -> dict[str, str]:
    """`NAME CLASS` in every line; a name may have folders before it, which are not looked at."""
    known = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{_KEY}: --labels: cannot read {shown(path)}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace(",", " ").rpartition(" ")
        if not name:
            raise UserError(
                f"{_KEY}: --labels: line {number} of {shown(path)} is {line!r}; expected NAME CLASS"
            )
        known[PurePosixPath(name.strip()).name] = label
    return known


# --- tar files -----------------------------------------------------------------------------------------------


class _Rows:
    """Grows sample by sample, 24 bytes each: a tar file may have fourteen million."""

    def __init__(self) -> None:
        self.offset, self.length, self.label = array("Q"), array("Q"), array("L")
        self._classes: dict[str, int] = {}

    def add(self, offset: int, length: int, label: str) -> None:
        self.offset.append(offset)
        self.length.append(length)
        self.label.append(self._classes.setdefault(label, len(self._classes)))

    def of(self, names: list[str], stats: list[tuple[int, int]], shard: np.ndarray) -> ShardRows:
        offset, length, label = (
            np.array(kind, dtype=np.int64) for kind in (self.offset, self.length, self.label)
        )
        return ShardRows(names, stats, shard, offset, length, list(self._classes), label)


class _Member(NamedTuple):
    """A file in a tar file, or in one within it."""

    name: str
    offset: int
    length: int
    inside: str  # the inner tar file, without its suffix; empty in the outer one


def _scan_tar(job: _Job) -> ShardRows:
    path = Path(job.root) / job.name
    rows = _Rows()
    waiting: list[_Member] = []  # their class may stand behind them
    beside: dict[str, str] = {}  # class by the name without its suffix
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            for member in _members(file, 0, status.st_size, ""):
                if member.name.endswith(".cls"):
                    content = os.pread(file.fileno(), member.length, member.offset)
                    beside[member.name.removesuffix(".cls")] = os.fsdecode(content).strip()
                elif is_image(member.name):
                    label = job.known.get(PurePosixPath(member.name).name) or member.inside
                    if label:
                        rows.add(member.offset, member.length, label)
                    else:
                        waiting.append(member)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{_KEY}: {shown(path)} is no whole tar file: {error}; expected one") from None
    for member in waiting:
        rows.add(member.offset, member.length, _label(member, beside, path))
    shard = np.zeros(len(rows.label), dtype=np.int64)
    return rows.of([job.name], [(status.st_size, status.st_mtime_ns)], shard)


def _members(file: IO[bytes], start: int, end: int, inside: str) -> Iterator[_Member]:
    """The files of a tar file that lies between `start` and `end`."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps them all
            if entry.offset_data + entry.size > end:  # an inner file without its closing blocks
                raise tarfile.ReadError(f"{inside or entry.name} is cut off")
            if not entry.isreg():
                continue
            if entry.name.endswith(".tar"):
                inner = PurePosixPath(entry.name).stem
                yield from _members(file, entry.offset_data, entry.offset_data + entry.size, inner)
            else:
                yield _Member(entry.name, entry.offset_data, entry.size, inside)


def _label(member: _Member, beside: Mapping[str, str], path: Path) -> str:
    name = PurePosixPath(member.name)
    found = beside.get(str(name.with_suffix(""))) or name.parent.name
    if not found:
        raise UserError(
            f"{_KEY}: {shown(path)}: {member.name} is in no folder, and has neither a .cls beside it nor a line in "
            "--labels; expected its class in one of them"
        )
    return found


# --- loose files ---------------------------------------------------------------------------------------------


def _scan_folder(job: _Job) -> ShardRows:
    """One class, folders in it included; every file is a shard of its own."""
    names, stats, rows = [], [], _Rows()
    others: list[str] = []
    folder = Path(job.root) / job.name
    for path in image_files(_KEY, str(folder), others):
        label = job.known.get(Path(path).name) or job.name.removeprefix(_WHOLE_FOLDER)
        if not label:
            raise UserError(
                f"{_KEY}: {shown(path)} is in no class folder and has no line in --labels; expected its class in "
                "one of them"
            )
        try:
            status = Path(path).stat()
        except OSError as error:
            raise UserError(
                f"{_KEY}: {shown(path)} cannot be read: {error.strerror}; expected a file"
            ) from None
        names.append(os.path.relpath(path, job.root))
        stats.append((status.st_size, status.st_mtime_ns))
        rows.add(0, status.st_size, label)
    tell_left_out(_KEY, folder, others)
    return rows.of(names, stats, np.arange(len(names)))
