"""Image files and Parquet files of a few rows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor


def picture(number: int, size: tuple[int, int] = (12, 12), kind: str = "PNG") -> bytes:
    """An image file with smooth content that depends on `number`; size is (width, height)."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([200 * x, 200 * y, np.full_like(x, 5 * (number % 50))], axis=-1) + 20
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return stream.getvalue()


def write_parquet(path: Path, images: Sequence[bytes | None], labels: Sequence, **options) -> Path:
    """A Parquet file with the columns image and label; options go to the writer."""
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels)})
    pq.write_table(table, path, **{"row_group_size": 10} | options)
    return path


def assert_same(first: Sequence[Mapping[str, Tensor]], second: Sequence[Mapping[str, Tensor]]) -> None:
    """That two passes have the same batches, bit for bit."""
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key
