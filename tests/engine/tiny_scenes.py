"""Small street scenes of two classes, for the tests of segmentation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raytrain_speedup.config import Experiment, load_experiment

SIDE = 32


def write_scenes(folder: Path) -> dict[str, Path]:
    """Bright squares on dark ground, with masks that tell them apart and a border of no class."""
    rng = np.random.default_rng(0)
    paths = {}
    for split, count in (("train", 24), ("test", 6)):
        columns: dict[str, list[bytes]] = {"image": [], "mask": []}
        for _ in range(count):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            top, left = rng.integers(0, SIDE // 2, 2)
            mask[top : top + 14, left : left + 14] = 1
            pixels = (40 + 150 * mask[..., None] + rng.integers(0, 40, (SIDE, SIDE, 3))).astype(np.uint8)
            mask[:2] = 255
            for name, array in (("image", pixels), ("mask", mask)):
                stream = io.BytesIO()
                Image.fromarray(array).save(stream, "PNG")
                columns[name].append(stream.getvalue())
        paths[split] = folder / f"{split}.parquet"
        pq.write_table(
            pa.table({name: pa.array(files, pa.binary()) for name, files in columns.items()}), paths[split]
        )
    return paths


def camvid(
    scenes: dict[str, Path], overrides: dict[str, Any] | None = None, recipe: str = "camvid"
) -> Experiment:
    """The recipe on 18 small scenes of two classes, 3 epochs of 3 steps."""
    keys = {
        **{f"data.{split}": str(path) for split, path in scenes.items()},
        **{"data.val": None, "data.val_fraction": 0.25, "data.classes": 2, "data.void": 255},
        **{"data.image_size": SIDE, "data.padding": 4},
        **{"train.epochs": 3, "train.batch_size": 6, "train.threads": 1},
        **{"train.eval_every": 0, "train.checkpoint_every": 1},
    }
    return load_experiment(recipe, keys | (overrides or {}))
