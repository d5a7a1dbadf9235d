"""Does `speedup preflight --workers` tell what a run on so many workers takes? Foretold and real, side by side.

    OMP_NUM_THREADS=1 python tests/benchmarks/outlook.py [--workers 1 2] [--epochs 3]

ResNet-8 on 5,000 images of CIFAR-10, on Ray Train workers of one core each, on one machine: no more of them than it
has cores. The bandwidth between them is measured first (`speedup cluster check`'s all-reduce).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ray
from side_by_side import data_folder, first_rows, provenance

from raytrain_speedup.config import ScalingSettings, load_experiment
from raytrain_speedup.engine.outlook import outlooks
from raytrain_speedup.scaling.check import all_reduce
from raytrain_speedup.scaling.cluster import connect
from raytrain_speedup.scaling.launch import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--epochs", type=float, default=3.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = {
            "data.train": str(
                first_rows(data_folder() / "cifar10-train.parquet", 5000, Path(folder) / "train")
            ),
            "data.test": str(data_folder() / "cifar10-test.parquet"),
            **{"train.epochs": asked.epochs, "train.eval_every": 0, "train.threads": 1},
            **{"pruning.method": "none", "scaling.start_timeout": 300},
        }
        base = load_experiment("cifar10-resnet8-cpu", keys)
        connect(ScalingSettings(workers=max(asked.workers)))
        link = all_reduce(ScalingSettings(workers=2)) * 1e9
        print(f"all-reduce between two workers: {link / 1e9:.2f} GB/s\n")
        print("| workers | foretold | of it, exchange | real | foretold / real |\n|--:|--:|--:|--:|--:|")
        for one in outlooks(base, asked.workers, link=link, steps=8):
            experiment = base.with_overrides({"scaling.workers": one.workers})
            run = launch(experiment, Path(folder) / f"run-{one.workers}", lambda kind, metrics: None)
            real = run.costs.train_seconds
            exchange = one.exchange_seconds / one.seconds
            cells = [
                one.workers,
                f"{one.seconds:.1f} s",
                f"{exchange:.0%}",
                f"{real:.1f} s",
                f"{one.seconds / real:.2f}",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    ray.shutdown()
    print(f"\n{provenance([0])}")


if __name__ == "__main__":
    main()
