"""Images that cannot be read: counted, named, and too many refused, before an epoch and in the middle of one."""

from __future__ import annotations

import io
import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine_runs import CPU, Diary, run
from PIL import Image

from raytrain_speedup.config import Experiment, load_experiment_dict
from raytrain_speedup.data import check_readable, open_data
from raytrain_speedup.data.masks import ParquetMasksSettings
from raytrain_speedup.engine.preflight import preflight
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


def experiment(folder: Path, loader: str, **data: float | str) -> Experiment:
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
        metrics = run(
            experiment(tmp_path, loader, max_corrupt_fraction=0.02), Diary(tmp_path / "run"), device=CPU
        )
    assert metrics["samples_skipped"] == 1
    assert metrics["epoch"] == 2
    named = [message for message in caplog.messages if "train.parquet row 37" in message]
    assert len(named) == 1


def test_too_many_are_refused_by_name(tmp_path: Path):
    write_images(tmp_path / "train.parquet", 100, broken=tuple(range(40, 60)))
    write_images(tmp_path / "test.parquet", 20)
    with pytest.raises(UserError, match=r"max_corrupt_fraction=0.01.*row 4\d"):
        run(experiment(tmp_path, "device"), Diary(tmp_path / "run"), device=CPU)
    metrics = run(
        experiment(tmp_path, "device", max_corrupt_fraction=0.5), Diary(tmp_path / "more"), device=CPU
    )
    assert metrics["samples_skipped"] == 20


def test_a_batch_without_a_readable_sample_is_passed_over(tmp_path: Path):
    """More than half is broken, and batches are small: some have nothing to show."""
    write_images(tmp_path / "train.parquet", 60, broken=tuple(range(0, 60, 4)) + tuple(range(1, 60, 4)))
    write_images(tmp_path / "test.parquet", 20)
    tried = experiment(tmp_path, "workers", max_corrupt_fraction=1.0, num_workers=0)
    diary = Diary(tmp_path / "run")
    metrics = run(tried.with_overrides({"train.batch_size": 2}), diary, device=CPU)
    assert metrics["samples_skipped"] > 20
    assert np.isfinite(diary.epochs[-1]["train_loss"])


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("loader", ["device", "workers"])
def test_a_split_that_is_read_last_is_tried_first(split: str, loader: str, tmp_path: Path):
    """Before the first epoch, and by the preflight: not when the budget is spent."""
    for name in ("train", "val", "test"):
        write_images(tmp_path / f"{name}.parquet", 40, broken=(7, 8, 21) if name == split else ())
    tried = experiment(tmp_path, loader, max_corrupt_fraction=0.05, val=str(tmp_path / "val.parquet"))
    message = rf"data\.{split}: 3 of 40 samples cannot be read, .*=0\.05 allows; .*{split}.parquet row 7:"
    diary = Diary(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        run(tried, diary, device=CPU)
    assert diary.steps == 0 and diary.reports == []
    with pytest.raises(UserError, match=message):
        preflight(tried, steps=1)
    allowed = tried.with_overrides({"data.max_corrupt_fraction": 0.075, "train.epochs": 0.2})
    assert run(allowed, Diary(tmp_path / "allowed"), device=CPU)["samples_skipped"] == 3


@pytest.mark.parametrize(
    ("broken", "refused"),
    [(range(1920, 2000), True), (np.linspace(0, 1999, 1000).astype(int)[::84].tolist(), False)],
    ids=["4 % at the end", "0.6 %, all among those tried"],
)
def test_of_a_large_split_as_many_are_tried_as_show_what_is_wrong(broken, refused: bool, tmp_path: Path):
    """1 % is allowed: 4 % of the 1,000 tried are too many, and 1.2 % of them no proof that there are more."""
    assert refused or len(broken) == 12
    write_images(tmp_path / "train.parquet", 10)
    write_images(tmp_path / "test.parquet", 2000, broken=tuple(broken))
    settings = experiment(tmp_path, "device").data
    splits = open_data(settings, seed=0)
    message = r"data\.test: 40 of 1000 samples cannot be read, .* the first: .*row 19\d\d:"
    with pytest.raises(UserError, match=message) if refused else nullcontext():
        check_readable(splits, settings)


def test_masks_are_tried_too(tmp_path: Path):
    write_images(tmp_path / "test.parquet", 20)
    table = pq.read_table(tmp_path / "test.parquet")
    scenes = table.append_column("mask", table["image"])  # three channels: no masks
    pq.write_table(scenes, tmp_path / "scenes.parquet")
    data = {"source": "parquet-masks", "train": str(tmp_path / "scenes.parquet"), "classes": 2}
    settings = ParquetMasksSettings(**data, test=tmp_path / "scenes.parquet", image_size=16)
    with pytest.raises(UserError, match=r"data\.test: 20 of 20 .* row 0: its mask: has 3 channels"):
        check_readable(open_data(settings, seed=0), settings)


def test_without_validation_data_there_are_no_validation_metrics(tmp_path: Path):
    write_images(tmp_path / "train.parquet", 32)
    write_images(tmp_path / "test.parquet", 8)
    metrics = run(experiment(tmp_path, "device", val_fraction=0.0), Diary(tmp_path / "run"), device=CPU)
    assert "val_accuracy" not in metrics
    assert "accuracy" in metrics
