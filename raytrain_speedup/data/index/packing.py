"""Packing images into tar files, for an index to read by ranges: Parquet, loose files, and sets sorted by class.

An index reads a sample of Parquet by its own bytes where pages are not compressed, or by Snappy; what zstd or gzip
compressed comes by the page, hundreds of samples, and is refused there. Packed once, each has bytes of its own.
What can be indexed can be packed too: millions of loose files become some thousand, and what is sorted by class, as
ImageNet's tar files are, is shuffled, so that every stretch of it holds all classes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import Progress

from raytrain_speedup.data.base import CorruptSample, Source
from raytrain_speedup.data.folders import new_folder
from raytrain_speedup.data.index.indexed import IndexedSource
from raytrain_speedup.data.index.indexing import find_files, make_index
from raytrain_speedup.data.index.object_store import read_here
from raytrain_speedup.data.index.shards import open_index
from raytrain_speedup.data.index.webdataset import write_shard
from raytrain_speedup.data.parquet import open_parquet
from raytrain_speedup.data.unreadable import log
from raytrain_speedup.randomness import numpy_generator

KEY = "data pack"
_SUFFIXES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}
"""By the first bytes of a file: Parquet has no names."""
_READ = 64  # samples read together


def pack_images(
    source: str,
    folder: Path,
    *,
    labels: Path | None = None,
    image_column: str = "image",
    label_column: str = "label",
    per_shard: int = 1000,
    seed: int = 0,
    processes: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the images of a source, as they are, to tar files in WebDataset's layout; gives their number.

    Args:
        source: Parquet files, whose order is kept; or an index, or what can be indexed, shuffled by `seed`. What an
            index has in quarantine is left out.
        folder: where they go; nothing may be in it.
        labels: as of `make_index`.
        image_column, label_column: of Parquet files.
        per_shard: images of a tar file.
        processes: default: one for each core.

    Raises:
        UserError: for a folder that is not empty, or a source that cannot be read.
    """
    images: Source
    with new_folder(KEY, folder), tempfile.TemporaryDirectory() as aside:
        files = None if (Path(source) / "index.json").is_file() else find_files(source)
        if files is not None and files.parquet:
            named = [job.file for job in files.parquet_jobs(image_column, label_column)]
            images, class_names = open_parquet(KEY, source, named, image_column, label_column)
            order = np.arange(len(images))
        else:
            if files is None:
                index = open_index(Path(source), KEY)
            else:
                index = make_index(
                    files, Path(aside) / "index", labels=labels, processes=processes, progress=progress
                )
            images, class_names = IndexedSource(index, index.targets), index.class_names
            kept = np.setdiff1d(np.arange(len(images)), index.quarantined(), assume_unique=True)
            order = numpy_generator(seed).permutation(kept)
        parts = np.split(order, range(per_shard, len(order), per_shard))
        jobs = [(folder / f"{number * per_shard:09d}.tar", part) for number, part in enumerate(parts)]
        workers = min(processes or os.cpu_count() or 1, len(jobs))
        with ProcessPoolExecutor(workers, initializer=_begin, initargs=(images, class_names)) as pool:
            done = pool.map(_write, jobs)
            return sum(progress.track(done, total=len(jobs), description="packing") if progress else done)


_source: tuple[Source, tuple[str, ...]]


def _begin(images: Source, class_names: tuple[str, ...]) -> None:
    """Once in every process: a source is large."""
    global _source
    _source = images, class_names
    read_here()


def _write(job: tuple[Path, np.ndarray]) -> int:
    """Write a tar file of some rows; gives how many of them are images."""
    path, rows = job
    written: list[int] = []
    write_shard(path, _samples(rows, written))
    return len(written)


def _samples(rows: np.ndarray, written: list[int]) -> Iterator[tuple[str, bytes, str]]:
    images, class_names = _source
    for start in range(0, len(rows), _READ):
        chunk = rows[start : start + _READ].tolist()
        for row, content in zip(chunk, images.encoded_many(chunk), strict=True):
            data = b"" if content is None or isinstance(content, CorruptSample) else bytes(content)
            suffix = next((name for begin, name in _SUFFIXES.items() if data.startswith(begin)), None)
            if suffix is None:
                why = content.why if isinstance(content, CorruptSample) else "this is no image file"
                log.warning("%s: left out: %s: %s", KEY, images.locate(row), why)
                continue
            written.append(row)
            yield f"{row:09d}.{suffix}", data, class_names[images.targets[row]]
