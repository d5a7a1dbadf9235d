"""What is wrong with the samples of an index, before a training finds out: each is read and decoded once.

Four kinds of faults. Unreadable: no decoder takes it, or its bytes are not there. Misplaced: the same bytes stand
in several classes, so that at most one label is right. Leaked: the same bytes stand in the index of an evaluation
split too. Duplicate: the same bytes stand before it in its class. (Images are compared by their files, not by
their looks: a copy that was saved anew is another file.)

What is to be left out goes into the index's `quarantine.csv`, a row and its reason in every line, for people to
read and to edit; whoever opens the index honours it.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from rich.progress import Progress

from raytrain_speedup.data.base import Buffer, CorruptSample
from raytrain_speedup.data.decode import decode
from raytrain_speedup.data.index.indexed import IndexedSource
from raytrain_speedup.data.index.object_store import read_here
from raytrain_speedup.data.index.shards import QUARANTINE, Index, IndexPart, open_index
from raytrain_speedup.settings import UserError

Kind = Literal["unreadable", "misplaced", "leaked", "duplicate"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_DIGEST = 16
_CHUNK = 256  # rows that a process reads together and checks
_SMALLEST = 8  # a JPEG is decoded at an eighth: its entropy coding, where damage shows, is read whole


@dataclass(frozen=True)
class Fault:
    """Something wrong with one sample.

    Attributes:
        row: of the index.
        why: in words; names the other sample where there is one.
    """

    row: int
    kind: Kind
    where: str
    why: str


def check_samples(
    index: Index,
    evaluated: Sequence[Index] = (),
    *,
    processes: int | None = None,
    pool: Executor | None = None,
    progress: Progress | None = None,
) -> list[Fault]:
    """Read every sample, those in quarantine too.

    Args:
        evaluated: indexes of validation and test data, whose images must not be trained on.
        processes: default: one for each core.
        pool: that reads and decodes in place of processes of this machine, such as tasks of a cluster. It need not
            see the folders of the indexes, but all that these name.
        progress: shows how far it is.

    Raises:
        UserError: if an index of another split is this one.

    Returns:
        One fault a sample at most, the first that applies of unreadable, leaked, misplaced and duplicate; by row.
    """
    for other in evaluated:
        if other.digest == index.digest:
            raise UserError(
                f"data check: {other.folder} has the samples of {index.folder}; expected indexes of other splits, "
                "whose images are leaked"
            )
    own = (
        nullcontext(pool) if pool else ProcessPoolExecutor(processes or os.cpu_count(), initializer=read_here)
    )
    with own as readers:
        digests = partial(_digests, pool=readers, progress=progress, sent=pool is not None)
        digest_N, unreadable = digests(index)
        others = [digests(other, decoded=False)[0] for other in evaluated]
    source = IndexedSource(index, index.targets)
    faults = {row: Fault(row, "unreadable", source.locate(row), why) for row, why in unreadable.items()}
    for other, other_N in zip(evaluated, others, strict=True):
        for row in np.flatnonzero(np.isin(digest_N, other_N)).tolist():
            why = f"it is in {other.folder} too"
            faults.setdefault(row, Fault(row, "leaked", source.locate(row), why))
    for rows in _equal(digest_N):
        readable = [row for row in rows if row not in unreadable]
        classes = {index.class_names[index.targets[row]] for row in readable}
        for row in readable if len(classes) > 1 else ():
            why = f"the same file is of the classes {', '.join(sorted(classes))}"
            faults.setdefault(row, Fault(row, "misplaced", source.locate(row), why))
        for row in readable[1:]:
            why = f"the same file as {source.locate(readable[0])}"
            faults.setdefault(row, Fault(row, "duplicate", source.locate(row), why))
    return [faults[row] for row in sorted(faults)]


def write_quarantine(index: Index, faults: Iterable[Fault], kinds: Sequence[Kind]) -> int:
    """Write an index's list of samples to leave out, those of some kinds; gives their number. An empty list is no
    file."""
    left_out = [fault for fault in faults if fault.kind in kinds]
    path, aside = index.folder / QUARANTINE, index.folder / f".{QUARANTINE}.new"
    if not left_out:
        path.unlink(missing_ok=True)
        return 0
    with aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["row", "kind", "where", "why"])
        table.writerows([fault.row, fault.kind, fault.where, fault.why] for fault in left_out)
    aside.rename(path)
    return len(left_out)


def _digests(
    index: Index, pool: Executor, progress: Progress | None, *, sent: bool, decoded: bool = True
) -> tuple[np.ndarray, dict[int, str]]:
    """(N,) of the files' digests, and why rows cannot be read, nor `decoded`. They are read in the files' order, by
    processes that open the index, or that are `sent` what they need of it."""
    order_N = np.lexsort((index.rows["offset"], index.rows["shard"]))
    starts = range(0, len(order_N), _CHUNK)
    chunks = [order_N[start : start + _CHUNK] for start in starts]
    digest_N = np.zeros(len(order_N), dtype=f"V{_DIGEST}")
    unreadable: dict[int, str] = {}
    if sent:
        found = pool.map(partial(_check_part, decoded=decoded), map(index.part, chunks))
    else:
        found = pool.map(partial(_check, index.folder, decoded=decoded), chunks)
    parts: Iterable[tuple[bytes, dict[int, str]]] = found
    if progress is not None:
        parts = progress.track(found, total=len(chunks), description=f"checking {index.folder.name}")
    for rows, (digests, failed) in zip(chunks, parts, strict=True):
        digest_N[rows] = np.frombuffer(digests, dtype=digest_N.dtype)
        unreadable |= {int(rows[position]): why for position, why in failed.items()}
    return digest_N, unreadable


def _check(folder: Path, rows: np.ndarray, *, decoded: bool) -> tuple[bytes, dict[int, str]]:
    """Digests of rows, one behind the other, and why some cannot be read, by their position."""
    return _check_rows(_source_of(folder), rows.tolist(), decoded=decoded)


def _check_part(part: IndexPart, *, decoded: bool) -> tuple[bytes, dict[int, str]]:
    """As `_check`."""
    index = part.as_index()
    return _check_rows(IndexedSource(index, index.targets), list(range(len(part.rows))), decoded=decoded)


def _check_rows(source: IndexedSource, wanted: list[int], *, decoded: bool) -> tuple[bytes, dict[int, str]]:
    digests, failed = [], {}
    for position, (row, found) in enumerate(zip(wanted, source.encoded_many(wanted), strict=True)):
        content: Buffer = b""
        try:
            if isinstance(found, CorruptSample):
                raise found
            content = found or b""
            if decoded:
                decode(content, source, row, _SMALLEST)
        except CorruptSample as error:
            failed[position] = error.why
        digests.append(hashlib.blake2b(content, digest_size=_DIGEST).digest())
    return b"".join(digests), failed


_opened: dict[Path, IndexedSource] = {}


def _source_of(folder: Path) -> IndexedSource:
    """Opened once in a process."""
    if folder not in _opened:
        index = open_index(folder)
        _opened[folder] = IndexedSource(index, index.targets)
    return _opened[folder]


def _equal(digest_N: np.ndarray) -> list[list[int]]:
    """The rows of every digest that stands more than once, ascending."""
    _, number_N, count_M = np.unique(digest_N, return_inverse=True, return_counts=True)
    repeated_N = np.flatnonzero(count_M[number_N] > 1)
    groups: dict[int, list[int]] = {}
    for row in repeated_N.tolist():
        groups.setdefault(int(number_N[row]), []).append(row)
    return list(groups.values())
