"""Two workers train and judge a segmentation network together: mean IoU is that of all their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, Diary, WorkerDiary, run, weights
from ranks import on_two_ranks
from tiny_scenes import camvid, write_scenes

from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.engine.evaluate import evaluate
from raytrain_speedup.models import build_model

KEYS = {"train.accumulate": 2, "train.batch_size": 8, "train.mixup": 0.2, "pruning.method": "infobatch"}


def worker(rank: int, folder: Path) -> dict[str, Any]:
    scenes = {split: folder / f"{split}.parquet" for split in ("train", "test")}
    return run(camvid(scenes, KEYS), WorkerDiary(folder / "run", rank), device=CPU)


def test_their_metrics_are_those_of_the_saved_network_on_the_whole_split(tmp_path: Path):
    write_scenes(tmp_path)
    first, second = on_two_ranks(worker, tmp_path)
    judged = ("miou", "pixel_accuracy", "test_loss", "samples_shown")
    assert {name: first[name] for name in judged} == {name: second[name] for name in judged}
    experiment = camvid({split: tmp_path / f"{split}.parquet" for split in ("train", "test")}, KEYS)
    splits = open_data(experiment.data, seed=0)
    network = build_model(experiment.model, num_classes=2, image_size=splits.image_size, dense=True)
    network.load_state_dict(weights(Diary(tmp_path / "run")))
    whole = evaluate(
        network,
        experiment.task.build(),
        build_loader(splits, experiment.data, device=CPU, seed=0),
        "test",
        batch_size=4,
        autocast=torch.autocast("cpu", enabled=False),
    )
    assert whole["miou"] == pytest.approx(first["miou"], abs=0.1)
    assert whole["loss"] == pytest.approx(first["test_loss"], rel=1e-3)
