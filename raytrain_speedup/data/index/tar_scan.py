"""The samples in tar files by their headers alone, which are all that is read of them.

Tar files within tar files, as ImageNet comes, are looked into, several at a time: the whole of ImageNet-22K is
indexed as it was downloaded, without unpacking a byte.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from rich.progress import Progress

from raytrain_speedup.data.folders import is_image, shown
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.range_file import open_shard
from raytrain_speedup.data.index.writing import KEY, ShardRows
from raytrain_speedup.settings import UserError


@dataclass(frozen=True)
class TarJob:
    """A tar file to scan, or one within it.

    Attributes:
        root: folder or URI that it is in.
        known: class by the name of a file; goes before all else.
        stat: of an object in a store; None where it is a file.
        span: where the inner tar file begins and ends.
        inside: the class that its name says: the inner one's without its suffix; most outer ones' says none.
    """

    root: str
    name: str
    known: Mapping[str, str]
    stat: Stat | None = None
    span: tuple[int, int] | None = None
    inside: str = ""


def scan_tars(jobs: Sequence[TarJob], pool: Executor, progress: Progress | None) -> list[ShardRows]:
    """The samples of tar files and of those within them, in their order, one part a file."""
    parts: dict[str, list[ShardRows]] = {job.name: [] for job in jobs}
    task = progress.add_task("indexing", total=len(jobs)) if progress else None
    left = list(jobs)
    while left:
        inner: list[TarJob] = []
        for job, (part, found) in zip(left, pool.map(_scan, left), strict=True):
            parts[job.name].append(part)
            inner += found
            if progress is not None and task is not None:
                progress.update(task, advance=1, total=len(jobs) + len(inner))
        left = inner
    return [_joined(found) for found in parts.values()]


def _joined(parts: Sequence[ShardRows]) -> ShardRows:
    """What was found in one tar file, in the order of its bytes."""
    first = parts[0]
    if len(parts) == 1:
        return first
    number = {name: label for label, name in enumerate(dict.fromkeys(n for p in parts for n in p.classes))}
    label = np.concatenate(
        [np.array([number[name] for name in part.classes], dtype=np.int64)[part.label] for part in parts]
    )
    offset = np.concatenate([part.offset for part in parts])
    length = np.concatenate([part.length for part in parts])
    order = np.argsort(offset, kind="stable")
    return ShardRows(
        first.names,
        first.stats,
        np.zeros(len(offset), dtype=np.int64),
        offset[order],
        length[order],
        list(number),
        label[order],
    )


class Rows:
    """Grows sample by sample, 24 bytes each: a tar file may have fourteen million."""

    def __init__(self) -> None:
        self.offset, self.length, self.label = array("Q"), array("Q"), array("L")
        self._classes: dict[str, int] = {}

    def add(self, offset: int, length: int, label: str) -> None:
        self.offset.append(offset)
        self.length.append(length)
        self.label.append(self._classes.setdefault(label, len(self._classes)))

    def of(self, names: list[str], stats: list[Stat], shard: np.ndarray) -> ShardRows:
        """As a part of an index.

        Args:
            names, stats: of the shards.
            shard: (n,) which of them each sample is in.
        """
        offset, length, label = (
            np.array(kind, dtype=np.int64) for kind in (self.offset, self.length, self.label)
        )
        return ShardRows(names, stats, shard, offset, length, list(self._classes), label)


class _Member(NamedTuple):
    name: str
    offset: int
    length: int


def _scan(job: TarJob) -> tuple[ShardRows, list[TarJob]]:
    """The samples of a tar file, and the tar files in it."""
    rows, inner = Rows(), []
    waiting: list[_Member] = []  # their class may stand behind them
    beside: dict[str, str] = {}  # class by the name without its suffix
    where = f"{job.root}/{job.name}"
    try:
        with open_shard(job.root, job.name, job.stat) as (file, stat):
            for member in _members(file, job.span or (0, stat.size), job.inside):
                if member.name.endswith(".tar"):
                    span = member.offset, member.offset + member.length
                    inner.append(replace(job, span=span, inside=PurePosixPath(member.name).stem))
                elif member.name.endswith(".cls"):
                    file.seek(member.offset)
                    beside[member.name.removesuffix(".cls")] = os.fsdecode(file.read(member.length)).strip()
                elif is_image(member.name):
                    label = job.known.get(PurePosixPath(member.name).name) or job.inside
                    if label:
                        rows.add(member.offset, member.length, label)
                    else:
                        waiting.append(member)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{KEY}: {shown(where)} is no whole tar file: {error}; expected one") from None
    for member in waiting:
        rows.add(member.offset, member.length, _label(member, beside, where))
    return rows.of([job.name], [stat], np.zeros(len(rows.label), dtype=np.int64)), inner


def _members(file: IO[bytes], span: tuple[int, int], inside: str) -> Iterator[_Member]:
    """The files of a tar file that lies in a span of a file."""
    start, end = span
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps them all
            if entry.offset_data + entry.size > end:  # an inner file without its closing blocks
                raise tarfile.ReadError(f"{inside or entry.name} is cut off")
            if entry.isreg():
                yield _Member(entry.name, entry.offset_data, entry.size)


def _label(member: _Member, beside: Mapping[str, str], where: str) -> str:
    name = PurePosixPath(member.name)
    found = beside.get(str(name.with_suffix(""))) or name.parent.name
    if not found:
        raise UserError(
            f"{KEY}: {shown(where)}: {member.name} is in no folder, and has neither a .cls beside it nor a line in "
            "--labels; expected its class in one of them"
        )
    return found
