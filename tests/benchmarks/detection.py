"""Detection on CamVid: what pruning and fewer epochs cost, and what a classifier's backbone brings along.

    OMP_NUM_THREADS=1 python tests/benchmarks/detection.py [--seeds 3] [--epochs 12] [--size 128]

The recipe `camvid-ssdlite`, smaller. `fewer epochs` ends 30 % earlier, and InfoBatch leaves out 30 % of the passes.
`backbone` has the epochs of `none` and begins with the weights of a MobileNetV3 (reduced tail, as SSDlite has it)
that classified CIFAR-10 (5,000 images, 8 epochs; its cost is not counted). mAP and AP50 of the test split; cost in
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
    asked = arguments(__doc__, epochs=12.0, size=128).parse_args()
    seeds = range(asked.seeds)
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
            "fewer epochs": {"pruning.method": "epochs", "pruning.saving": SAVED},
            "InfoBatch": {"pruning.method": "infobatch", "pruning.saving": SAVED},
            "backbone": backbone,
        }
        results = side_by_side(base, variants, seeds)
    print_methods(results, {"mAP": ("map", "{:.2f}"), "AP50": ("ap50", "{:.2f}")})
    print(f"\n{asked.epochs:g} epochs at {asked.size} pixels. {provenance(seeds)}")


if __name__ == "__main__":
    main()
