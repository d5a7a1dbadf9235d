"""Masked autoencoders on CIFAR-10: what pruning, a curriculum and their controls cost, and how good features are.

    OMP_NUM_THREADS=1 python tests/benchmarks/mae.py [--seeds 3] [--rows 5000] [--epochs 15]

`cifar10-mae-cpu` with no method, InfoBatch, its controls at the same saving of compute, a curriculum of sizes, and
both. What is judged is the linear probe on the test split; `untrained` is a network that took no step to speak of.
Cost is in reference steps, as a fraction of that without a method, seed by seed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from side_by_side import arguments, data_folder, first_rows, print_methods, provenance, side_by_side

from raytrain_speedup.config import load_experiment

SAVED = 0.24
"""What InfoBatch saves here."""


def main() -> None:
    asked = arguments(__doc__, rows=5000, epochs=15.0).parse_args()
    seeds = range(asked.seeds)
    infobatch = {"pruning.method": "infobatch"}
    schedule = [{"fraction": 0.5, "ratio": 0.5}, {"fraction": 0.5, "ratio": 1.0}]
    curriculum = {"curriculum.method": "custom", "curriculum.schedule": schedule}
    none = {"pruning.method": "none", "train.epochs": asked.epochs}
    fewer = {"pruning.method": "epochs", "pruning.saving": SAVED}
    variants = {
        "none": none,
        "untrained": none | {"train.lr": 1e-9, "train.epochs": 1},
        "fewer epochs": none | fewer,
        "random": none | {"pruning.method": "random", "pruning.saving": SAVED},
        "InfoBatch": none | infobatch,
        "curriculum": none | fewer | curriculum,
        "InfoBatch and curriculum": none
        | infobatch
        | curriculum
        | {"train.epochs": asked.epochs * (1 - SAVED)},
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "data.train": str(
                first_rows(data_folder() / "cifar10-train.parquet", asked.rows, Path(folder, "train"))
            ),
            "data.test": str(data_folder() / "cifar10-test.parquet"),
        }
        results = side_by_side(load_experiment("cifar10-mae-cpu", files), variants, seeds)
    print_methods(
        results,
        {
            "probe accuracy": ("probe_accuracy", "{:.2f}"),
            "reconstruction error": ("reconstruction_error", "{:.3f}"),
        },
    )
    print(f"\n{asked.rows} images, {asked.epochs:g} epochs. {provenance(seeds)}")


if __name__ == "__main__":
    main()
