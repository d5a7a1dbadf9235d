"""Writing tar files in WebDataset's layout: NAME.jpg, and its class in NAME.cls behind it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, str]]) -> None:
    """Write a tar file, whole or not at all.

    Args:
        samples: (file name, file, class).
    """
    aside = path.with_name(f".{path.name}.new")
    with tarfile.open(aside, "w") as tar:
        for name, content, label in samples:
            _add(tar, name, content)
            _add(tar, f"{name.rpartition('.')[0]}.cls", label.encode("utf-8", "surrogateescape"))
    aside.rename(path)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
