"""Two workers train and judge a segmentation network together: mean IoU is that of all their pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from engine_runs import CPU, Diary, WorkerDiary, free_port, run, weights
from tiny_scenes import camvid, write_scenes

from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.engine.evaluate import evaluate
from raytrain_speedup.models import build_model

KEYS = {"train.accumulate": 2, "train.batch_size": 8, "train.mixup": 0.2, "pruning.method": "infobatch"}


def worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    scenes = {split: folder / f"{split}.parquet" for split in ("train", "test")}
    metrics = run(camvid(scenes, KEYS), WorkerDiary(folder / "run", rank), device=CPU)
    torch.save(metrics, folder / f"metrics-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two workers ran."""
    folder = tmp_path_factory.mktemp("two-scenes")
    write_scenes(folder)
    torch.multiprocessing.spawn(worker, (free_port(), folder), nprocs=2)
    return folder


def test_their_metrics_are_those_of_the_saved_network_on_the_whole_split(two: Path):
    first, second = (torch.load(two / f"metrics-{rank}.pt", weights_only=True) for rank in range(2))
    judged = ("miou", "pixel_accuracy", "test_loss", "samples_shown")
    assert {name: first[name] for name in judged} == {name: second[name] for name in judged}
    experiment = camvid({split: two / f"{split}.parquet" for split in ("train", "test")}, KEYS)
    splits = open_data(experiment.data, seed=0)
    network = build_model(experiment.model, num_classes=2, image_size=splits.image_size, dense=True)
    network.load_state_dict(weights(Diary(two / "run")))
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
