"""Images that cannot be read, in the middle of an epoch: counted, named, and too many refused."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine_runs import CPU, Diary
from PIL import Image

from raytrain_speedup.config import Experiment, load_experiment_dict
from raytrain_speedup.engine.run import run
from raytrain_speedup.settings import UserError


def write_images(path: Path, count: int, broken: tuple[int, ...] = ()) -> None:
    """JPEGs of noise with the labels 0 and 1; the broken ones end in the middle."""
    random, images = np.random.default_rng(0), []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "JPEG")
        data = buffer.getvalue()
        images.append(data[: len(data) // 3] if number in broken else data)
    pq.write_table(pa.table({"image": images, "label": [n % 2 for n in range(count)]}), path)


def experiment(folder: Path, loader: str, **data: float) -> Experiment:
    return load_experiment_dict(
        {
            "name": "broken",
            "data": {
                "source": "parquet",
                "train": str(folder / "train.parquet"),
                "test": str(folder / "test.parquet"),
                "loader": loader,
                "num_workers": 1,
                **data,
            },
            "model": {"name": "resnet8"},
            "train": {"epochs": 2, "batch_size": 16, "threads": 1},
            "pruning": {"method": "infobatch", "anneal_from": 1.0},
        }
    )


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_a_corrupt_jpeg_is_skipped_counted_and_named(loader: str, tmp_path: Path, caplog):
    write_images(tmp_path / "train.parquet", 100, broken=(37,))
    write_images(tmp_path / "test.parquet", 20)
    with caplog.at_level(logging.WARNING):
        figures = run(
            experiment(tmp_path, loader, max_corrupt_share=0.02), Diary(tmp_path / "run"), device=CPU
        )
    assert figures["samples_skipped"] == 1
    assert figures["epoch"] == 2
    named = [message for message in caplog.messages if "train.parquet row 37" in message]
    assert len(named) == 1


def test_too_many_are_refused_by_name(tmp_path: Path):
    write_images(tmp_path / "train.parquet", 100, broken=tuple(range(40, 60)))
    write_images(tmp_path / "test.parquet", 20)
    with pytest.raises(UserError, match=r"max_corrupt_share=0.01.*row 4\d"):
        run(experiment(tmp_path, "device"), Diary(tmp_path / "run"), device=CPU)
    figures = run(experiment(tmp_path, "device", max_corrupt_share=0.5), Diary(tmp_path / "more"), device=CPU)
    assert figures["samples_skipped"] == 20


def test_a_batch_without_a_readable_sample_is_passed_over(tmp_path: Path):
    """More than half is broken, and batches are small: some have nothing to show."""
    write_images(tmp_path / "train.parquet", 60, broken=tuple(range(0, 60, 4)) + tuple(range(1, 60, 4)))
    write_images(tmp_path / "test.parquet", 20)
    tried = experiment(tmp_path, "workers", max_corrupt_share=1.0, num_workers=0)
    diary = Diary(tmp_path / "run")
    figures = run(tried.with_overrides({"train.batch_size": 2}), diary, device=CPU)
    assert figures["samples_skipped"] > 20
    assert np.isfinite(diary.epochs[-1]["train_loss"])


def test_without_validation_data_there_are_no_validation_figures(tmp_path: Path):
    write_images(tmp_path / "train.parquet", 32)
    write_images(tmp_path / "test.parquet", 8)
    figures = run(experiment(tmp_path, "device", val_share=0.0), Diary(tmp_path / "run"), device=CPU)
    assert "val_accuracy" not in figures
    assert "accuracy" in figures
