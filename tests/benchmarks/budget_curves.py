"""Accuracy against compute spent: from which budget on, if any, does a method beat simply fewer epochs?

    OMP_NUM_THREADS=1 python tests/benchmarks/budget_curves.py digits --minutes 7 > curves.md
    OMP_NUM_THREADS=1 python tests/benchmarks/budget_curves.py cifar10 --rows 10000 --minutes 7
    PYTHONPATH=. python tests/benchmarks/budget_curves.py airbench --seeds 0 --log 0.jsonl  # on a GPU

    --budgets 5 12 30    compute of a full run, in its epochs
    --saving 0.3         the fraction of it that all methods but `none` save
    --only rs2 seta      some of the methods (`none` and `epochs` are what they are compared with); also
                         composer-resize and timm-progressive, and for a ViT patch-dropout
    --seeds 0 1 2
    --minutes 7          start no run after so long; ask again to go on
    --log FILE           a line of JSON per run (by default beside this script); those are not run again

Digits need nothing; CIFAR-10 its parquet files (SPEEDUP_DATA): `cifar10` is a ResNet-8 on the first rows,
`cifar10-vit` a small vision transformer with all curricula, and `airbench` the recipe `cifar10-airbench` on all of
them, with the augmentation of the other. At one budget all methods but `none` spend the same compute, so that
their accuracies are compared as they stand: pruners leave out samples, a curriculum has fewer epochs of smaller
images, both together leave out samples of as many. The
interval is 90 %, of the differences paired by seed. The compute of a row is what was measured, not what was
asked for. Accuracy is that of the test split after the last epoch. Times say nothing here: other programs may
run beside it. For several processes at once give each its own seeds and log; their lines together are the log
of all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from side_by_side import Metrics, data_folder, provenance, small_cifar10, spread

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.engine.statistics.estimate import Estimate

RESULTS = Path(__file__).parent / "results"
FEWER = "epochs"
PRUNERS = ("random", "rs2", "infobatch", "orderdp", "seta", "el2n", "forgetting", "dyn-unc")
CURRICULA = ("efficienttrain++", "resize")
BOTH = "infobatch + efficienttrain++"
METHODS = ("none", FEWER, *PRUNERS, *CURRICULA, BOTH)
PROGRESSIVE = ("composer-resize", "timm-progressive")
OF_VIT = ("patch-dropout",)
STAGED = (*CURRICULA, *PROGRESSIVE, *OF_VIT)
BUDGETS = {"digits": (5, 12, 30), "cifar10": (4, 8, 16), "cifar10-vit": (8, 16), "airbench": (8, 16, 32)}
VIT = {
    "model.name": "timm/vit_tiny_patch16_224",
    "model.options": {"patch_size": 4, "depth": 3, "embed_dim": 64, "num_heads": 4},
    "train.optimizer": "adamw",
    "train.lr": 2e-3,
    "train.weight_decay": 0.05,
}
"""A vision transformer of 64 tokens, for curricula that leave out patches."""

KEPT = ("accuracy", "samples_shown", "passes_saved", "compute_spent", "train_flops", "epoch")
"""Metrics of a run that the log keeps."""

Key = tuple[str, int, float, int]
"""Method, budget, saving and seed of a run."""


def keys(
    methods: Sequence[str], budgets: Sequence[int], saving: float, seeds: Sequence[int]
) -> Iterator[Key]:
    """All runs, the cheap ones first: whenever one stops, whole budgets are there."""
    for budget in budgets:
        for seed in seeds:
            for method in methods:
                yield method, budget, 0.0 if method == "none" else saving, seed


def experiment_of(base: Experiment, key: Key) -> Experiment:
    """The run itself."""
    method, budget, saving, seed = key
    pruner, _, curriculum = method.partition(" + ")
    if pruner in STAGED:
        pruner, curriculum = "none", pruner
    pruning = {} if pruner == "none" else {"pruning.saving": saving}
    epochs = budget * (1 - saving) if curriculum and pruner == "none" else budget
    return base.with_overrides(
        {
            "pruning.method": pruner,
            **pruning,
            "curriculum.method": curriculum or "none",
            "train.epochs": epochs,
            "train.seed": seed,
        }
    )


def base_of(data: str, rows: int, folder: Path) -> Experiment:
    """What all runs have in common."""
    shared = {"train.eval_every": 0, "train.checkpoint_every": 0, "train.threads": 1}
    if data.startswith("cifar10"):
        return small_cifar10(folder, rows, shared | (VIT if data.endswith("vit") else {}))
    if data == "airbench":
        files = {f"data.{name}": str(data_folder() / f"cifar10-{name}.parquet") for name in ("train", "test")}
        return load_experiment(
            "cifar10-airbench",
            {
                "data.source": "parquet",  # and with it a section of its own, of random flips
                "data.image_size": 32,
                "data.val_fraction": 0,
                **files,
                **shared,
            },
        )
    return load_experiment(
        "digits", {"pruning.method": "none", "data.image_size": 8, "train.lr": 0.05, **shared}
    )


def table(found: dict[Key, Metrics], wanted: Sequence[Key]) -> None:
    """Markdown: a line per budget and method whose seeds are all there, and what to conclude from them."""
    print("| budget | method | passes saved | passes made | compute | accuracy | - fewer epochs (90 %) | |")
    print("|--:|---|--:|--:|--:|--:|--:|---|")
    beaten: dict[str, list[str]] = {}
    for method, budget, saving in dict.fromkeys(key[:3] for key in wanted):
        seeds = sorted(key[3] for key in wanted if key[:3] == (method, budget, saving))
        runs = [found.get((method, budget, saving, seed)) for seed in seeds]
        done = [metrics for metrics in runs if metrics is not None]
        if len(done) < len(seeds):
            continue
        saved = fmean(metrics["passes_saved"] for metrics in done)
        full = found.get(("none", budget, 0.0, seeds[0]))
        spent = [
            f"{budget * fmean(metrics[name] for metrics in done) / full[name]:.2f}"
            if full is not None
            else ""
            for name in ("samples_shown", "train_flops")
        ]
        cells = [
            str(budget),
            method,
            f"{round(saved, 4) + 0:.1%}",
            *spent,
            spread([metrics["accuracy"] for metrics in done]),
            *difference(found, method, budget, saving, seeds),
        ]
        print(f"| {' | '.join(cells)} |")
        if method not in ("none", FEWER):
            beaten.setdefault(method, []).append(f"{cells[-1] or 'not compared'} at {budget}")
    print()
    for method, verdicts in beaten.items():
        print(f"- `{method}` against fewer epochs: {', '.join(verdicts)}.")


def compared(
    found: dict[Key, Metrics], method: str, budget: int, saving: float, seeds: Sequence[int]
) -> Estimate | None:
    """Method - fewer epochs at the same compute, paired by seed; None where runs are missing."""
    sides = [
        [found.get((one, budget, saving, seed), {}).get("accuracy") for seed in seeds]
        for one in (method, FEWER)
    ]
    if method in ("none", FEWER) or len(seeds) < 2 or None in sides[0] + sides[1]:
        return None
    return Estimate.of(*(np.array(side, dtype=float) for side in sides), "paired")


def difference(
    found: dict[Key, Metrics], method: str, budget: int, saving: float, seeds: Sequence[int]
) -> tuple[str, str]:
    """`compared` with its interval, and the word for it."""
    estimate = compared(found, method, budget, saving, seeds)
    if estimate is None:
        return "", ""
    low, high = (float(bound) for bound in estimate.bounds(0.05, 0.05))
    word = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    return f"{float(estimate.difference):+.2f} ({low:+.2f} to {high:+.2f})", word


def recorded(log: Path) -> dict[Key, Metrics]:
    """The runs of a log."""
    if not log.is_file():
        return {}
    lines = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return {tuple(line["run"]): line["metrics"] for line in lines}


def record(log: Path, key: Key, metrics: dict[str, Any]) -> None:
    """Add a run to the log."""
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": key, "metrics": metrics}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=list(BUDGETS))
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--saving", type=float, default=0.3)
    parser.add_argument("--only", nargs="+", choices=dict.fromkeys((*METHODS, *STAGED)), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=10_000, help="images of CIFAR-10's training file")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--log", type=Path)
    asked = parser.parse_args()
    name = f"{asked.data}-{asked.rows}" if asked.data.startswith("cifar10") else asked.data
    methods = asked.only or (("none", FEWER, *STAGED) if asked.data == "cifar10-vit" else METHODS)
    log = asked.log or RESULTS / f"budget-curves-{name}.jsonl"
    wanted = list(keys(methods, asked.budgets or BUDGETS[asked.data], asked.saving, asked.seeds))
    found, end = recorded(log), time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as folder:
        base = base_of(asked.data, asked.rows, Path(folder))
        for key in wanted:
            if key in found:
                continue
            if time.monotonic() > end:
                print(f"{len(found.keys() & set(wanted))} of {len(wanted)} runs are done", file=sys.stderr)
                break
            with tempfile.TemporaryDirectory() as place:
                metrics = run(experiment_of(base, key), LocalReporter(Path(place))).to_dict()
            found[key] = {name: metrics[name] for name in KEPT}
            record(log, key, found[key])
            print(key, f"{metrics['accuracy']:.2f}", file=sys.stderr, flush=True)
    table(found, wanted)
    print(f"\n{base.model.name}, {name}. {provenance(asked.seeds)}")


if __name__ == "__main__":
    main()
