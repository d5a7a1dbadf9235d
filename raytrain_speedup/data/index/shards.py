"""An index of the samples in many files: which file each is in, where, how long, and of which class.

A pruned epoch reads samples in any order and leaves many out. With an index each costs one read of its own bytes,
whatever archive they lie in, and what is pruned is never read. The tables are NumPy files mapped into memory: they
open in milliseconds at any size, and the processes of a node share their pages.

    INDEX/
      index.json    version, class names, root of the shards, digest of the tables
      rows.npy      (N,) of `ROW`, 16 bytes a sample
      packed.npy    (N,) of `PACKED`, 20 bytes a sample, where samples are in compressed pages of Parquet
      targets.npy   (N,) int64
      shards.npy    (S,) of `SHARD`
      names.bin     the shards' paths below the root, one behind the other
      quarantine.csv    rows to leave out and why, where there are any (`checking.py`)

Shards are tar files, Parquet files, or loose files of one sample each; `indexing.py` makes indexes, `reading.py`
reads by them.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_speedup.settings import UserError

VERSION, VERSION_PACKED = 2, 3
ROW = np.dtype([("offset", "<u8"), ("shard", "<u4"), ("length", "<u4")])
"""One sample: `length` bytes from `offset` on, in the file number `shard`."""
PACKED = np.dtype([(name, "<u4") for name in ("size", "start", "length", "literal", "tail")])
"""How a sample is packed into its bytes of `ROW`: it is `length` bytes from `start` on of the `size` bytes that
they decompress to (`snappy.Cut`; `literal` 0: they are the sample)."""
SHARD = np.dtype([("size", "<u8"), ("changed_ns", "<i8"), ("tag", "<u8"), ("name_end", "<u8")])
"""One file, as it was when it was indexed (`Stat`; the tag is 0 where it was no object of a store); its name ends
at `name_end` in names.bin."""
QUARANTINE = "quarantine.csv"
_HEAD = {"version": int, "root": str, "digest": str, "class_names": list}


@dataclass(frozen=True)
class Index:
    """An index that was opened; equal ones are read from the same folder.

    Attributes:
        folder: where it is.
        root: folder or URI that the names of the shards are relative to.
        digest: equal for the same samples at the same places.
        class_names: by class number.
        rows: (N,) of `ROW`.
        targets: (N,) int64.
        shards: (S,) of `SHARD`.
        names: (bytes,) uint8, the shards' paths.
        packed: (N,) of `PACKED`; None where every sample is as it lies there.
    """

    folder: Path
    root: str
    digest: str
    class_names: tuple[str, ...]
    rows: np.ndarray
    targets: np.ndarray
    shards: np.ndarray
    names: np.ndarray
    packed: np.ndarray | None = None

    def name(self, shard: int) -> str:
        """The path of a shard below the root."""
        start = int(self.shards[shard - 1]["name_end"]) if shard else 0
        return os.fsdecode(self.names[start : int(self.shards[shard]["name_end"])].tobytes())

    def quarantined(self) -> np.ndarray:
        """(n,) int64, ascending: the rows that its quarantine list leaves out.

        Raises:
            UserError: if the list names anything that is no row.
        """
        path, rows = self.folder / QUARANTINE, set()
        if not path.exists():
            return np.empty(0, dtype=np.int64)
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.reader(file)  # names of files may have commas and line ends in them
            next(table, None)
            for fields in table:
                row = fields[0] if fields else ""
                if not row.isdecimal() or int(row) >= len(self.rows):
                    raise UserError(
                        f"{path}: line {table.line_num} names row {row!r}; expected one from 0 to "
                        f"{len(self.rows) - 1}, as `speedup data check` writes them"
                    )
                rows.add(int(row))
        return np.array(sorted(rows), dtype=np.int64)

    def part(self, rows: np.ndarray) -> IndexPart:
        """Some rows, and what is needed to read them where the index is not.

        Args:
            rows: (n,) of the samples.
        """
        part_n = self.rows[rows]
        used, part_n["shard"] = np.unique(part_n["shard"], return_inverse=True)
        names = tuple(self.name(shard) for shard in used.tolist())
        packed = None if self.packed is None else self.packed[rows]
        return IndexPart(self.root, part_n, self.shards[used], names, packed)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_index, (self.folder,)  # a mapped array would be sent whole


@dataclass(frozen=True)
class IndexPart:
    """Rows of an index that are sent elsewhere.

    Attributes:
        root: as that of the index.
        rows: (n,) of `ROW`, their shards counted among these.
        shards: (s,) of `SHARD`.
        names: the shards' paths.
        packed: (n,) of `PACKED`, or None.
    """

    root: str
    rows: np.ndarray
    shards: np.ndarray
    names: tuple[str, ...]
    packed: np.ndarray | None

    def as_index(self) -> Index:
        """An index of these rows alone, in no folder, without classes."""
        encoded = [os.fsencode(name) for name in self.names]
        shards = self.shards.copy()
        shards["name_end"] = np.cumsum([len(name) for name in encoded], dtype=np.uint64)
        names = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        none = np.zeros(len(self.rows), dtype=np.int64)
        return Index(Path(os.devnull), self.root, "", (), self.rows, none, shards, names, self.packed)


def open_index(folder: Path, key: str = "data.train") -> Index:
    """Map the tables of an index.

    Args:
        key: of the settings, for messages.

    Raises:
        UserError: if there is none, or one of another version, or a damaged one.
    """
    head = _read_head(folder, key)
    packed = ["packed"] if head["version"] == VERSION_PACKED else []
    try:
        tables = {  # plain arrays over the maps: an item of a `memmap` takes twice the time
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("rows", "targets", "shards", *packed)
        }
        names = np.asarray(np.memmap(folder / "names.bin", dtype=np.uint8, mode="r"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: the index {folder} is damaged: {error}; expected to be made again") from None
    if len({len(table) for name, table in tables.items() if name != "shards"}) != 1:
        raise UserError(f"{key}: the index {folder} is damaged: its tables differ in length; make it again")
    return Index(
        folder.absolute(), head["root"], head["digest"], tuple(head["class_names"]), names=names, **tables
    )


def _read_head(folder: Path, key: str) -> dict[str, Any]:
    """What index.json says, of a version that can be read."""
    try:
        head = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{key}: {folder} is no index; expected a folder that `speedup data index SRC -o {folder}` made"
        ) from None
    if not isinstance(head, dict):
        head = {}
    if head.get("version", VERSION) not in (VERSION, VERSION_PACKED):
        raise UserError(
            f"{key}: {folder} is an index of version {head['version']}; expected {VERSION}: make it again with "
            f"`speedup data index {head.get('root', 'SRC')} -o {folder}`"
        )
    wrong = [name for name, kind in _HEAD.items() if not isinstance(head.get(name), kind)]
    if wrong:
        raise UserError(
            f"{key}: {folder / 'index.json'} has no '{wrong[0]}' as an index has it; expected to be made again"
        )
    return head
