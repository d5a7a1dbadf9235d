"""Segmentation of CamVid: what pruning, a curriculum and their controls cost, and what a backbone brings along.

    OMP_NUM_THREADS=1 python tests/benchmarks/camvid.py [--seeds 3] [--epochs 16] [--size 64] [--backbone]

The recipe `camvid`, smaller. Every method but `none` is given 30 % less: pruners leave out 30 % of the passes, all
else ends 30 % earlier. With --backbone another row has fewer epochs and begins with the weights of a MobileNetV3
that classified CIFAR-10 (5,000 images, 8 epochs; its cost is not counted). mIoU of the test split; cost in
reference steps and FLOPs, as fractions of those of `none`, seed by seed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from backbone import camvid, classifier
from side_by_side import arguments, print_methods, provenance, side_by_side

from raytrain_speedup.config import load_experiment

SAVED = 0.3


def main() -> None:
    parser = arguments(__doc__, epochs=16.0, size=64)
    parser.add_argument(
        "--backbone", action="store_true", help="also from a classifier's weights, minutes more"
    )
    asked = parser.parse_args()
    seeds, fewer = range(asked.seeds), {"pruning.method": "epochs", "pruning.saving": SAVED}
    stages = [{"fraction": 0.4, "ratio": 0.67}, {"fraction": 0.6, "ratio": 1.0}]
    infobatch = {"pruning.method": "infobatch", "pruning.saving": SAVED}
    curriculum = {"curriculum.method": "custom", "curriculum.schedule": stages}
    base = load_experiment(
        "camvid",
        {
            **camvid(),
            **{"data.image_size": asked.size, "data.padding": 8, "train.epochs": asked.epochs},
            **{"train.eval_every": 0, "train.threads": 1},
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "none": {},
            "fewer epochs": fewer,
            "random": {"pruning.method": "random", "pruning.saving": SAVED},
            "InfoBatch": infobatch,
            "InfoBatch, quantiles": {"pruning.method": "infobatch", "pruning.threshold": "quantile"},
            "curriculum": curriculum | fewer,
            "InfoBatch and curriculum": infobatch | curriculum,
        }
        if asked.backbone:
            variants["backbone"] = fewer | {"model.pretrained": str(classifier(Path(folder)))}
        results = side_by_side(base, variants, seeds)
    print_methods(results, {"mIoU": ("miou", "{:.2f}")})
    print(f"\n{asked.epochs:g} epochs at {asked.size} pixels. {provenance(seeds)}")


if __name__ == "__main__":
    main()
