"""Pruning and curriculum, alone and together, on CIFAR-10 at equal budget, on a CPU.

    python tests/benchmarks/composition.py [--rows 10000] [--epochs 6] [--seeds 3]

At equal samples a curriculum makes a sample cheaper, pruning shows fewer of them; together the compute spent
should be the product of the two, within 2 points. The table says what became of the accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean

from side_by_side import middle, provenance, ratios, side_by_side, small_cifar10, spread

from raytrain_speedup.methods.curriculum import CURRICULA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=6, help="sample passes of every variant")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    stages = CURRICULA["efficienttrain++"]().stages(32)
    ends = [stage.ends_at for stage in stages]
    passes = sum(
        (stage.ends_at - start) / stage.cost for stage, start in zip(stages, [0.0, *ends], strict=False)
    )
    curriculum = {"curriculum.method": "efficienttrain++", "train.epochs": asked.epochs / passes}
    pruning = {"pruning.method": "infobatch", "pruning.saving": 0.25}
    variants = {"none": {}, "pruning": pruning, "curriculum": curriculum, "both": {**pruning, **curriculum}}
    keys = {"train.epochs": asked.epochs, "train.threads": asked.threads}
    with tempfile.TemporaryDirectory() as folder:
        base = small_cifar10(Path(folder), asked.rows, keys)
        results = side_by_side(base, variants, seeds)
    print("\n| method | test accuracy | compute spent | training time |\n|---|--:|--:|--:|")
    spent = {}
    for name in variants:
        compute = ratios(results, name, "compute_spent", "none")
        seconds = ratios(results, name, "train_seconds", "none")
        spent[name] = mean(compute)
        accuracy = spread([metrics["accuracy"] for metrics in results[name]])
        print(f"| {name} | {accuracy} | {spent[name]:.1%} | {middle(seconds)} |")
    product = spent["pruning"] * spent["curriculum"]
    print(f"\npruning x curriculum = {product:.1%} of the compute, both = {spent['both']:.1%}")
    print(f"ResNet-8, {asked.rows} images, {asked.epochs:g} sample passes, batch 128. {provenance(seeds)}")


if __name__ == "__main__":
    main()
