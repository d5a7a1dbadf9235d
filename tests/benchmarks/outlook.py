"""Does `speedup preflight --workers` tell what a run on so many workers takes? Foretold and real, side by side.

    OMP_NUM_THREADS=1 python tests/benchmarks/outlook.py [--workers 1 2] [--epochs 3]
    OMP_NUM_THREADS=1 python tests/benchmarks/outlook.py --emulated --workers 1 2 4 [--parameters 2e6]

ResNet-8 on 5,000 images of CIFAR-10, on Ray Train workers of one core each, on one machine: no more of them than it
has cores. With `--emulated` each worker waits for an accelerator of its own (`emulated.py`), so there may be more
workers than cores: the exchange of gradients, the reading and all that Ray and DDP do is real. The bandwidth
between workers is measured first, among as many as train (`speedup cluster check`'s all-reduce).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ray
from side_by_side import data_folder, first_rows, provenance

from raytrain_speedup.config import Experiment, ScalingSettings, load_experiment
from raytrain_speedup.engine.outlook import outlooks
from raytrain_speedup.scaling.check import all_reduce
from raytrain_speedup.scaling.cluster import connect
from raytrain_speedup.scaling.launch import launch

EMULATED = {"model.name": "emulated:accelerator", "train.batch_size": 256, "train.ema_decay": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--emulated", action="store_true", help="accelerators that are waited for")
    parser.add_argument("--milliseconds", type=float, default=2.0, help="of a step there, for a sample")
    parser.add_argument("--parameters", type=float, default=2e6, help="of the network there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys: dict[str, object] = {
            "data.train": str(
                first_rows(data_folder() / "cifar10-train.parquet", 5000, Path(folder) / "train")
            ),
            "data.test": str(first_rows(data_folder() / "cifar10-test.parquet", 500, Path(folder) / "test")),
            **{"train.epochs": asked.epochs, "train.eval_every": 0, "train.threads": 1},
            **{"pruning.method": "none", "scaling.start_timeout": 300, "scaling.cpus_per_worker": 1},
        }
        if asked.emulated:
            options = {"milliseconds": asked.milliseconds, "parameters": asked.parameters}
            keys |= EMULATED | {"model.options": options, "scaling.cpus_per_worker": 0.25}
        base = load_experiment("cifar10-resnet8-cpu", keys)
        connect(ScalingSettings(workers=2))
        print("| workers | GB/s among them | foretold | of it, exchange | real | foretold / real |")
        print("|--:|--:|--:|--:|--:|--:|")
        for count in asked.workers:
            print(
                row(base.with_overrides({"scaling.workers": count}), Path(folder) / f"run-{count}"),
                flush=True,
            )
    ray.shutdown()
    print(f"\n{provenance([0])}")


def row(experiment: Experiment, folder: Path) -> str:
    """Foretold, then real."""
    scaling = experiment.scaling
    link = all_reduce(scaling) * 1e9 if scaling.most_workers > 1 else 1e9
    (one,) = outlooks(experiment, [scaling.most_workers], link=link, steps=8)
    real = launch(experiment, folder, lambda kind, metrics: None).costs.train_seconds
    shown = f"{link / 1e9:.2f}" if scaling.most_workers > 1 else ""
    exchange = one.exchange_seconds / one.seconds
    cells = [one.workers, shown, f"{one.seconds:.1f} s", f"{exchange:.0%}", f"{real:.1f} s"]
    return f"| {' | '.join(map(str, cells))} | {one.seconds / real:.2f} |"


if __name__ == "__main__":
    main()
