"""A small classifier whose weights another task begins with, and the files of CamVid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from side_by_side import data_folder, first_rows

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run

ROWS, EPOCHS = 5000, 8


def camvid() -> dict[str, str]:
    """The splits, as experiment keys."""
    return {
        f"data.{split}": str(data_folder() / f"camvid-{split}.parquet") for split in ("train", "val", "test")
    }


def classifier(folder: Path, **options: Any) -> Path:
    """The weights of a MobileNetV3 after a few epochs of CIFAR-10.

    Args:
        options: of the network.
    """
    keys = {
        "data.train": str(first_rows(data_folder() / "cifar10-train.parquet", ROWS, folder / "train")),
        "data.test": str(data_folder() / "cifar10-test.parquet"),
        "model.name": "torchvision/mobilenet_v3_large",
        "model.options": options,
        "model.bn_momentum": 0.1,
        "pruning.method": "none",
        **{"train.epochs": EPOCHS, "train.eval_every": 0, "train.threads": 1, "train.batch_size": 64},
        **{"train.optimizer": "adamw", "train.lr": 0.002, "train.weight_decay": 0.01},
    }
    reporter = LocalReporter(folder / "run")
    metrics = run(load_experiment("cifar10-resnet8-cpu", keys), reporter).to_dict()
    print(f"  classifier: {metrics['accuracy']:.1f} % in {metrics['train_seconds']:.0f} s", flush=True)
    latest = reporter.latest()
    assert latest is not None
    return latest / "model.pt"
