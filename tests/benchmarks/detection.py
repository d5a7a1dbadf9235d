"""Detection on CamVid: what pruning and fewer epochs cost, and what a classifier's backbone brings along.

    OMP_NUM_THREADS=1 python tests/benchmarks/detection.py [--seeds 3] [--epochs 12] [--size 128]

The recipe `camvid-ssdlite`, smaller. `fewer epochs` ends 30 % earlier, and InfoBatch leaves out 30 % of the passes.
`backbone` has the epochs of `none` and begins with the weights of a MobileNetV3 (reduced tail, as SSDlite has it)
that classified CIFAR-10 (5,000 images, 8 epochs; its cost is not counted). mAP and AP50 of the test split; cost in
reference steps and FLOPs, as fractions of those of `none`, seed by seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from side_by_side import data_folder, first_rows, middle, provenance, ratios, side_by_side, spread

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run

SAVED = 0.3
ROWS, EPOCHS = 5000, 8
"""Of the classifier."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    seeds, fewer = range(asked.seeds), {"train.epochs": asked.epochs * (1 - SAVED)}
    base = load_experiment(
        "camvid-ssdlite",
        {
            **{
                f"data.{split}": str(data_folder() / f"camvid-{split}.parquet")
                for split in ("train", "val", "test")
            },
            **{"data.image_size": asked.size, "train.epochs": asked.epochs},
            **{"train.eval_every": 0, "train.threads": 1},
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        backbone = {"model.pretrained": str(classifier(Path(folder)))}
        variants = {
            "none": {},
            "fewer epochs": fewer,
            "InfoBatch": {"pruning.method": "infobatch", "pruning.saving": SAVED},
            "backbone": backbone,
        }
        results = side_by_side(base, variants, seeds)
    print("\n| method | mAP | AP50 | passes saved | cost | FLOPs |\n|---|--:|--:|--:|--:|--:|")
    for name in variants:
        judged = [spread([metrics[metric] for metrics in results[name]]) for metric in ("map", "ap50")]
        saved = sum(metrics["passes_saved"] for metrics in results[name]) / len(seeds)
        cost = middle(ratios(results, name, "reference_steps", "none"))
        flops = middle(ratios(results, name, "train_flops", "none"))
        print(f"| {name} | {' | '.join(judged)} | {saved:.0%} | {cost} | {flops} |")
    print(f"\n{asked.epochs:g} epochs at {asked.size} pixels. {provenance(seeds)}")


def classifier(folder: Path) -> Path:
    """The weights of a MobileNetV3 after a few epochs of CIFAR-10."""
    files = {
        "data.train": str(first_rows(data_folder() / "cifar10-train.parquet", ROWS, folder / "train")),
        "data.test": str(data_folder() / "cifar10-test.parquet"),
    }
    keys = {
        "model.name": "torchvision/mobilenet_v3_large",
        "model.options": {"reduced_tail": True},
        "model.bn_momentum": 0.1,
        "pruning.method": "none",
        **{"train.epochs": EPOCHS, "train.eval_every": 0, "train.threads": 1, "train.batch_size": 64},
        **{"train.optimizer": "adamw", "train.lr": 0.002, "train.weight_decay": 0.01},
    }
    reporter = LocalReporter(folder / "run")
    metrics = run(load_experiment("cifar10-resnet8-cpu", files | keys), reporter).to_dict()
    print(f"  classifier: {metrics['accuracy']:.1f} % in {metrics['train_seconds']:.0f} s", flush=True)
    latest = reporter.latest()
    assert latest is not None
    return latest / "model.pt"


if __name__ == "__main__":
    main()
