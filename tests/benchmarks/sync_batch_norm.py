"""What do batch statistics of each worker's own samples do to accuracy? One worker, two, and two that share them.

    PYTHONPATH=tests:tests/engine OMP_NUM_THREADS=1 python tests/benchmarks/sync_batch_norm.py [--batch 64 16]

The recipe `digits` (ResNet-8, 16 pixels) without a method, two gloo processes of one core each.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from engine_runs import CPU, Diary, WorkerDiary, run
from ranks import on_two_ranks
from side_by_side import provenance

from raytrain_speedup.config import Experiment, load_experiment

KEYS = {"pruning.method": "none", "train.eval_every": 0, "train.checkpoint_every": 0}
COLUMNS = ("accuracy", "test_loss", "train_seconds")


def experiments(seeds: int, epochs: float, batch: int, *, shared: bool) -> list[Experiment]:
    keys = {"train.epochs": epochs, "train.batch_size": batch, "train.lr": 0.2 * batch / 64}
    keys |= {"train.sync_batch_norm": shared}
    return [load_experiment("digits", KEYS | keys | {"train.seed": seed}) for seed in range(seeds)]


def both(rank: int, several: list[Experiment], folder: Path) -> list[dict[str, Any]]:
    found = []
    for number, experiment in enumerate(several):
        (folder / str(number)).mkdir(exist_ok=True)
        found.append(run(experiment, WorkerDiary(folder / str(number), rank), device=CPU))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 16])
    asked = parser.parse_args()
    print("| batch | workers | test accuracy | test loss | seconds |\n|--:|:--|--:|--:|--:|")
    for batch in asked.batch:
        rows = {}
        with tempfile.TemporaryDirectory() as folder:
            alone = experiments(asked.seeds, asked.epochs, batch, shared=False)
            rows["1"] = [
                run(each, Diary(Path(folder, "one", str(number))), device=CPU)
                for number, each in enumerate(alone)
            ]
        for name, shared in (("2, each its own", False), ("2, shared", True)):
            several = experiments(asked.seeds, asked.epochs, batch, shared=shared)
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = on_two_ranks(both, several, Path(folder))[0]
        for name, runs in rows.items():
            values = [[each[column] for each in runs] for column in COLUMNS]
            cells = [f"{mean(each):.3g} ± {stdev(each):.2g}" for each in values[1:]]
            accuracy = f"{mean(values[0]):.2f} ± {stdev(values[0]):.2f} %"
            print(f"| {batch} | {name} | {accuracy} | {cells[0]} | {cells[1]} |", flush=True)
    print(f"\n{provenance(range(asked.seeds))}")


if __name__ == "__main__":
    main()
