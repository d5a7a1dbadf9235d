"""A few images in every layout that can be indexed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("n01", "n02", "n10")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


FILES = {
    f"{name}/{number}.png": png(10 * k + number) for k, name in enumerate(CLASSES) for number in range(6)
}
"""Images by class folder and name, in the order of an image folder."""


def pack(path: Path, files: dict[str, bytes], **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def loose(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "n01" / "notes.txt").write_text("no image")
    return folder


def nested(path: Path) -> Path:
    """As ImageNet is downloaded: a tar file of tar files, one for each class."""
    inner = {}
    for name in CLASSES:
        own = {Path(file).name: content for file, content in FILES.items() if file.startswith(name)}
        inner[f"{name}.tar"] = pack(path.parent / "inner" / f"{name}.tar", own).read_bytes()
    return pack(path, inner)


def webdataset(folder: Path) -> Path:
    """Two shards; the class behind the image in one, before it in the other."""
    names = list(FILES)
    for shard, part in enumerate((names[:9], names[9:])):
        files = {}
        for name in part:
            key, label = name.replace("/", "-").removesuffix(".png"), str(CLASSES.index(name[:3])).encode()
            pair = {f"{key}.png": FILES[name], f"{key}.cls": label}
            files |= pair if shard else dict(reversed(pair.items()))
        pack(folder / f"shard-{shard}.tar", files)
    return folder


def parquet(folder: Path, **options: object) -> Path:
    """Two part files, with names of classes in them."""
    return _parts(
        folder, lambda content: content, list, None, use_dictionary=False, compression="none", **options
    )


def hugging_face(folder: Path) -> Path:
    """As `datasets` writes them: structs, numbers of classes, whose names are in the metadata, and Snappy."""
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return _parts(
        folder,
        lambda content: {"bytes": content, "path": "x.png"},
        lambda names: [CLASSES.index(name) for name in names],
        metadata,
    )


def _parts(
    folder: Path,
    image: Callable[[bytes], object],
    labels: Callable[[list[str]], list],
    metadata: dict[str, str] | None,
    **options: object,
) -> Path:
    folder.mkdir(parents=True)
    names = list(FILES)
    for part, chosen in enumerate((names[:7], names[7:])):
        columns = {"image": [image(FILES[name]) for name in chosen], "label": labels([n[:3] for n in chosen])}
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=4, **options)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "loose": lambda folder: loose(folder / "loose"),
    "nested": lambda folder: nested(folder / "all.tar"),
    "webdataset": lambda folder: webdataset(folder / "shards"),
    "parquet": lambda folder: parquet(folder / "parquet"),
    "hugging face": lambda folder: hugging_face(folder / "hf"),
    "folders in a tar": lambda folder: pack(folder / "all.tar", FILES),
    "long names": lambda folder: pack(
        folder / "all.tar", {f"{'deep/' * 40}{name}": data for name, data in FILES.items()}
    ),
}
