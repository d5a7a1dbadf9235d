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

from backbone import camvid, classifier
from side_by_side import middle, provenance, ratios, side_by_side, spread

from raytrain_speedup.config import load_experiment

SAVED = 0.3


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
            **camvid(),
            **{"data.image_size": asked.size, "train.epochs": asked.epochs},
            **{"train.eval_every": 0, "train.threads": 1},
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        backbone = {"model.pretrained": str(classifier(Path(folder), reduced_tail=True))}
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


if __name__ == "__main__":
    main()
