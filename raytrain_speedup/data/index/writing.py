"""Writing an index, whole or not at all, where nothing else is.

An index that is there is replaced, with the list of what it leaves out where that still means the same samples. A
folder with anything else in it is refused: what would be replaced there may be the very files that are indexed.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raytrain_speedup.data.folders import shown, some
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.shards import (
    PACKED,
    QUARANTINE,
    ROW,
    SHARD,
    VERSION,
    VERSION_PACKED,
    Index,
    open_index,
)
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

KEY = "data index"
_FORMER_QUARANTINE = "quarantine.former.csv"
_SAMPLES = ("rows.npy", "names.bin")
_OWN = {
    *_SAMPLES,
    "index.json",
    "targets.npy",
    "packed.npy",
    "shards.npy",
    QUARANTINE,
    f".{QUARANTINE}.new",
    _FORMER_QUARANTINE,
}


@dataclass(frozen=True)
class ShardRows:
    """What was found in one shard, or in one folder of loose files.

    Attributes:
        names: of the shards below the root.
        stats: of each.
        shard: (n,) which of them a sample is in.
        offset, length: (n,) in bytes.
        classes: names of classes.
        label: (n,) which of these a sample is of.
        packed: (n,) of `PACKED`, where samples are in compressed pages.
    """

    names: list[str]
    stats: list[Stat]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    classes: list[str]
    label: np.ndarray
    packed: np.ndarray | None = None


def check_place(folder: Path) -> None:
    """Find out whether an index may be written to a folder, before its samples are looked for.

    Raises:
        UserError: if it is a file, or holds anything but an index, or cannot be written.
    """
    place = folder.resolve()
    try:
        others = sorted({entry.name for entry in os.scandir(place)} - _OWN) if place.exists() else []
        if not others:
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = _aside(place)
            aside.mkdir()
            aside.rmdir()
    except OSError as error:
        raise UserError(
            f"{KEY}: -o {shown(folder)}: {error.strerror}; expected a new folder, or an index to replace"
        ) from None
    if others:
        raise UserError(
            f"{KEY}: -o {shown(folder)}: it holds {some(others)}, which no index does; expected a new folder, or "
            "an index to replace"
        )


def write_index(
    folder: Path, root: str, parts: Sequence[ShardRows], class_names: Sequence[str] | None = None
) -> Index:
    """Write an index, whole or not at all; one that is there is replaced.

    Args:
        class_names: in their order; default: those that occur, sorted, as numbers where all of them are.

    Raises:
        UserError: as `check_place`, or where the disk is full.
    """
    check_place(folder)
    place = folder.resolve()
    aside = _aside(place)
    try:
        aside.mkdir()
        _write_tables(aside, root, parts, class_names)
        _keep_quarantine(place, aside)
        former = _aside(place, "former")
        if place.exists():
            place.rename(former)
        aside.rename(place)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"{KEY}: -o {shown(folder)} cannot be written: {error.strerror}") from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return open_index(folder)


def _aside(place: Path, what: str = "new") -> Path:
    return place.with_name(f".{place.name}.{what}-{os.getpid()}")


def _keep_quarantine(former: Path, new: Path) -> None:
    """A list counts rows, so it is kept where they are the same ones; else it is put beside, and that is said."""
    listed = former / QUARANTINE
    if not listed.exists():
        return
    if all(filecmp.cmp(former / name, new / name, shallow=False) for name in _SAMPLES):
        shutil.copy2(listed, new / QUARANTINE)
        return
    shutil.copy2(listed, new / _FORMER_QUARANTINE)
    log.warning(
        "%s: %s: what the index before left out were rows of other files; nothing is left out any more (the list "
        "is %s): run `speedup data check` again",
        KEY,
        shown(former),
        _FORMER_QUARANTINE,
    )


def _write_tables(
    folder: Path, root: str, parts: Sequence[ShardRows], class_names: Sequence[str] | None
) -> None:
    if class_names is None:
        found = {name for part in parts for name in part.classes}
        numbers = all(name.isdecimal() for name in found)
        class_names = sorted(found, key=int if numbers else str)
    number = {name: target for target, name in enumerate(class_names)}
    count = sum(len(part.label) for part in parts)
    targets = np.empty(count, dtype=np.int64)
    rows = np.empty(count, dtype=ROW)
    packed = np.zeros(count, dtype=PACKED) if any(part.packed is not None for part in parts) else None
    shards = np.empty(sum(len(part.names) for part in parts), dtype=SHARD)
    written = first = row = end = 0
    with (folder / "names.bin").open("wb") as blob:
        for part in parts:
            for name, stat in zip(part.names, part.stats, strict=True):
                end += blob.write(os.fsencode(name))
                shards[written] = *stat, end
                written += 1
            here = slice(row, row := row + len(part.label))
            targets[here] = np.array([number[name] for name in part.classes], dtype=np.int64)[part.label]
            rows["shard"][here] = part.shard + first
            rows["offset"][here], rows["length"][here] = part.offset, part.length
            if packed is not None:
                packed[here] = part.packed
            first = written
    np.save(folder / "rows.npy", rows)
    np.save(folder / "targets.npy", targets)
    np.save(folder / "shards.npy", shards)
    digest = hashlib.blake2b((folder / "names.bin").read_bytes(), digest_size=16)
    for table in (rows, shards):
        digest.update(table.view(np.uint8).data)
    version = VERSION
    if packed is not None:
        version = VERSION_PACKED
        np.save(folder / "packed.npy", packed)
        digest.update(packed.view(np.uint8).data)
    head = {"version": version, "root": root, "digest": digest.hexdigest(), "class_names": [*class_names]}
    (folder / "index.json").write_text(json.dumps(head), encoding="utf-8")
