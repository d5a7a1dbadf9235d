"""Every family trains in the engine at each of its bandwidths."""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES

from raytrain_speedup.config import load_experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.models import NETWORKS
from raytrain_speedup.models.cswin import CSWin
from raytrain_speedup.models.resize import size_of

OWN: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "cswin_t": ({}, (96, 160, 224)),
    "resnet8": ({}, (16, 24, 32)),
    "wrn16_1": ({}, (16, 24, 32)),
    "vgg11": ({}, (16, 24, 32)),
    "airbench_s": ({}, (16, 24, 32)),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six PNGs of 32 x 32 pixels, three classes."""
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    files = []
    for number in range(6):
        stream = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 40 * number, dtype=np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    pq.write_table(pa.table({"image": files, "label": [0, 1, 2] * 2}), path)
    return path


@pytest.mark.parametrize("name", FAMILIES | OWN)
def test_a_step_at_every_bandwidth(name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Forward, backward, AdamW and EMA, from the smallest input to the full one, with a finite loss."""
    tiny = functools.partial(CSWin, 16, (1, 2, 2, 1), (2, 2, 4, 4))
    monkeypatch.setitem(NETWORKS, "cswin_t", tiny)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options, sizes = (FAMILIES | OWN)[name]
    full, fraction = sizes[-1], 1 / len(sizes)
    experiment = load_experiment(
        "digits",
        {
            "data": {"source": "parquet", "train": str(images), "test": str(images), "val_fraction": 0},
            "data.image_size": full,
            "model.name": name,
            "model.options": options,
            "train.batch_size": 2,
            "train.optimizer": "adamw",
            "train.lr": 1e-4,
            "train.ema_decay": 0.9,
            "curriculum.method": "custom",
            "curriculum.schedule": [{"fraction": fraction, "ratio": size / full} for size in sizes],
        },
    )
    splits = open_data(experiment.data, seed=0)
    loop, _ = assemble(experiment, splits, LocalReporter(tmp_path), Stopwatch(torch.device("cpu")))
    assert [stage.size for stage in loop.budget.stages] == list(sizes)
    steps = [loop.warm_up_step(stage, number=number) for number, stage in enumerate(loop.budget.stages)]
    for step, batch in zip(steps, loop.loader.train_batches(steps, epoch=0), strict=True):
        loop.train_step(step, batch, advance=0.1)
        assert batch["inputs"].shape == (2, 3, step.stage.size, step.stage.size)
        assert size_of(loop.model) in (None, step.stage.size)
        assert math.isfinite(loop.tally.mean_loss())
    assert math.isfinite(loop.evaluate("test")["loss"])
