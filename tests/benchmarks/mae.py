"""Masked autoencoders on CIFAR-10: what pruning, a curriculum and their controls cost, and how good features are.

    OMP_NUM_THREADS=1 python tests/benchmarks/mae.py [--seeds 3] [--rows 5000] [--epochs 15]

`cifar10-mae-cpu` with no method, InfoBatch, its controls at the same saving of compute, a curriculum of sizes, and
both. What is judged is the linear probe on the test split; `untrained` is a network that took no step to speak of.
Cost is in reference steps, as a fraction of that without a method, seed by seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from side_by_side import data_folder, first_rows, middle, provenance, ratios, side_by_side, spread

from raytrain_speedup.config import load_experiment

SAVED = 0.24
"""What InfoBatch saves here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=15.0)
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    infobatch = {"pruning.method": "infobatch"}
    schedule = [{"fraction": 0.5, "ratio": 0.5}, {"fraction": 0.5, "ratio": 1.0}]
    curriculum = {"curriculum.method": "custom", "curriculum.schedule": schedule}
    none = {"pruning.method": "none", "train.epochs": asked.epochs}
    variants = {
        "none": none,
        "untrained": none | {"train.lr": 1e-9, "train.epochs": 1},
        "fewer epochs": none | {"train.epochs": asked.epochs * (1 - SAVED)},
        "random": none | {"pruning.method": "random", "pruning.saving": SAVED},
        "InfoBatch": none | infobatch,
        "curriculum": none | curriculum | {"train.epochs": asked.epochs * (1 - SAVED)},
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
    print("\n| method | probe accuracy | reconstruction error | cost | FLOPs |\n|---|--:|--:|--:|--:|")
    for name in variants:
        accuracy = spread([metrics["probe_accuracy"] for metrics in results[name]])
        error = sum(metrics["reconstruction_error"] for metrics in results[name]) / len(seeds)
        cost = middle(ratios(results, name, "reference_steps", "none"))
        flops = middle(ratios(results, name, "train_flops", "none"))
        print(f"| {name} | {accuracy} | {error:.3f} | {cost} | {flops} |")
    print(f"\n{asked.rows} images, {asked.epochs:g} epochs. {provenance(seeds)}")


if __name__ == "__main__":
    main()
