"""InfoBatch against its controls on CIFAR-10 at equal compute, on a CPU.

    python tests/benchmarks/cifar10_pruning.py [--rows 20000] [--epochs 8] [--seeds 3] [--saving 0.25]

Needs cifar10-{train,test}.parquet (SPEEDUP_DATA). All variants but `none` save the same fraction of sample
passes. Prints a table: accuracy, and the training time saved over the sample passes saved, which is to be at
least .9: planning, scoring and shorter epochs must not eat what pruning saves.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from side_by_side import middle, provenance, ratios, side_by_side, small_cifar10, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="images of the training file that are used")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--saving", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    variants = {
        "none": {"pruning.method": "none"},
        "random": {"pruning.method": "random", "pruning.saving": asked.saving},
        "fewer epochs": {"pruning.method": "epochs", "pruning.saving": asked.saving},
        "InfoBatch": {"pruning.method": "infobatch", "pruning.saving": asked.saving},
        "InfoBatch r = .5": {"pruning.method": "infobatch"},
    }
    keys = {"train.epochs": asked.epochs, "train.threads": asked.threads}
    with tempfile.TemporaryDirectory() as folder:
        base = small_cifar10(Path(folder), asked.rows, keys)
        results = side_by_side(base, variants, seeds)
    print("\n| method | test accuracy | passes saved | time saved | time saved / passes saved |")
    print("|---|--:|--:|--:|--:|")
    for name in variants:
        saved = [1 - ratio for ratio in ratios(results, name, "train_seconds", "none")]
        passes = [metrics["passes_saved"] for metrics in results[name]]
        ratio = [a / b for a, b in zip(saved, passes, strict=True) if b > 0]
        print(
            f"| {name} | {spread([metrics['accuracy'] for metrics in results[name]])} | {spread(passes, '{:.1%}')} "
            f"| {middle(saved, '{:.1%}') if ratio else '-'} | {middle(ratio, '{:.2f}') if ratio else '-'} |"
        )
    print(f"\nResNet-8, {asked.rows} images, {asked.epochs} epochs, batch 128. {provenance(seeds)}")


if __name__ == "__main__":
    main()
