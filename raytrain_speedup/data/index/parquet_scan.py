"""The samples in Parquet files, where they lie (`parquet_pages.py`), and their classes, which are in a column.

Of pages that are not compressed the lengths of the values are read and no more; those that Snappy compressed are
read whole, once. In object storage both come by range reads, as from tar files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from raytrain_speedup.data.folders import shown
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.parquet_pages import PLACE, Chunk, places
from raytrain_speedup.data.index.range_file import open_shard
from raytrain_speedup.data.index.snappy import Damaged
from raytrain_speedup.data.index.writing import KEY, ShardRows
from raytrain_speedup.data.parquet import ClassColumn, require_classes
from raytrain_speedup.data.parquet_files import PartFiles, Stored, join_parts
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_FEW_TIMES = 4
"""A sample may be read with so many times its own bytes before it is said."""
_READ = ("UNCOMPRESSED", "SNAPPY")


@dataclass(frozen=True)
class ParquetJob:
    """A Parquet file to scan.

    Attributes:
        root: folder or URI that it is in.
        stat: of an object in a store; None where it is a file.
    """

    root: str
    name: str
    image_column: str
    label_column: str
    stat: Stat | None = None

    @property
    def file(self) -> Path | Stored:
        """What is to be opened."""
        return Path(self.root) / self.name if self.stat is None else Stored(self.root, self.name, self.stat)


@dataclass(frozen=True)
class _Found:
    stat: Stat
    places: np.ndarray
    labels: pa.ChunkedArray
    metadata: dict[bytes, bytes] | None


def scan_parquet(
    jobs: Sequence[ParquetJob], pool: Executor, progress: Progress | None
) -> tuple[list[ShardRows], tuple[str, ...]]:
    """The samples of Parquet files, one part a file, and the names of all classes in their order.

    Raises:
        UserError: if a file has no such columns, or its images have no places of their own.
    """
    results = pool.map(_scan, jobs)
    tracked = progress.track(results, total=len(jobs), description="indexing") if progress else results
    found = list(tracked)
    first = jobs[0]
    where = first.root if len(jobs) > 1 else f"{first.root}/{first.name}"
    labels = join_parts(KEY, shown(where), first.label_column, [one.labels for one in found])
    metadata = [one.metadata for one in found]
    classes = ClassColumn(KEY, shown(where), "--label-column", first.label_column, labels, metadata)
    names = classes.class_names()
    ends = np.cumsum([len(one.places) for one in found])[:-1]
    parts = [
        _part(job.name, one, names, target)
        for job, one, target in zip(jobs, found, np.split(classes.targets(names), ends), strict=True)
    ]
    _tell_of_more_bytes(parts, shown(where))
    if not any(part.packed["literal"].any() for part in parts if part.packed is not None):
        parts = [replace(part, packed=None) for part in parts]
    return parts, names


def _part(name: str, found: _Found, class_names: tuple[str, ...], target: np.ndarray) -> ShardRows:
    places = found.places
    offset, stored = places["offset"].astype(np.int64), places["stored"].astype(np.int64)
    in_file = np.zeros(len(places), dtype=np.int64)
    return ShardRows(
        [name], [found.stat], in_file, offset, stored, list(class_names), target, places["packed"]
    )


def _tell_of_more_bytes(parts: Sequence[ShardRows], where: str) -> None:
    """Say so where images compress, and so need what is before them."""
    stored = sum(int(part.length.sum()) for part in parts)
    own = sum(int(part.packed["length"].sum(dtype=np.int64)) for part in parts if part.packed is not None)
    if stored > _FEW_TIMES * own:
        log.warning(
            "%s: %s: a sample is read with %.0f times its own bytes, for Snappy tells it by others before it: "
            "`speedup data pack` makes tar files of it, where it is read alone",
            KEY,
            where,
            stored / max(1, own),
        )


def _scan(job: ParquetJob) -> _Found:
    where = shown(f"{job.root}/{job.name}")
    files = PartFiles(KEY, where, [job.file])
    files.require_images("--image-column", job.image_column)
    require_classes(files, job.label_column, "--label-column")
    labels = files.column(job.label_column)
    try:
        chunks = _chunks(files.files[job.file], job.image_column)
        with open_shard(job.root, job.name, job.stat) as (file, stat):
            found = np.concatenate([np.empty(0, PLACE), *(places(file, chunk) for chunk in chunks)])
    except Damaged as error:
        raise UserError(
            f"{KEY}: column '{job.image_column}' of {where}: {error}; `speedup data pack` makes tar files of what "
            "pyarrow reads of it"
        ) from None
    except OSError as error:
        raise UserError(f"{KEY}: {where} cannot be read: {error}; expected a Parquet file") from None
    if len(found) != len(labels):
        raise UserError(
            f"{KEY}: {where} has {len(found)} images in its pages and {len(labels)} rows; expected one for each"
        )
    return _Found(stat, found, labels, files.schema.metadata)


def _chunks(parquet: pq.ParquetFile, column: str) -> list[Chunk]:
    """Where the pages of a column of images are, of {bytes, path} those of the bytes.

    Raises:
        Damaged: if they are compressed so that they only come as a whole.
    """
    paths = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    path = f"{column}.bytes" if pa.types.is_struct(parquet.schema_arrow.field(column).type) else column
    if paths.count(path) != 1:
        raise Damaged(f"the file has {paths.count(path)} columns of the path '{path}'")
    number, chunks = paths.index(path), []
    for group in range(parquet.num_row_groups):
        meta = parquet.metadata.row_group(group).column(number)
        if not meta.num_values:
            continue  # it has no pages
        if meta.compression not in _READ:
            raise Damaged(
                f"{meta.compression} gives a page only as a whole ({meta.num_values} images in row group {group}, "
                f"{meta.total_compressed_size / 1e6:.1f} MB); expected pages that Snappy compressed, or none"
            )
        start = meta.data_page_offset
        if meta.dictionary_page_offset:  # some writers say 0 where there is none
            start = min(start, meta.dictionary_page_offset)
        highest = parquet.schema.column(number).max_definition_level
        stop = start + meta.total_compressed_size
        chunks.append(Chunk(start, stop, meta.compression == "SNAPPY", highest))
    return chunks
