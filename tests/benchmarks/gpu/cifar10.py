"""CIFAR-10 on ResNet-18: the methods and their controls through the engine, seed after seed.

The recipe `cifar10-resnet18` with a shorter budget, batches of 512 and four times its learning rate (at 128
images an H100 waits for the host). The epochs are chosen by a trial run, so that two seeds of everything fit
the time. Nothing is compiled: within minutes, compiling every stage of every run would cost more than it saves.
The device loader has no RandAugment, so EfficientTrain++ is its bandwidths alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.compare import NotComparable, compare
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table

SAVING = 0.3
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "InfoBatch": {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 0.875},
    "fewer epochs": {"pruning.method": "epochs", "pruning.saving": SAVING},
    "EfficientTrain++": {"curriculum.method": "efficienttrain++", "share": 2 / 3},
    "random": {"pruning.method": "random", "pruning.saving": SAVING},
    "InfoBatch + EfficientTrain++": {
        "pruning.method": "infobatch",
        "pruning.prune_ratio": 0.5,
        "pruning.anneal_from": 0.875,
        "curriculum.method": "efficienttrain++",
        "share": 2 / 3,
    },
}
"""Overrides; `share` of the epochs is the budget of a curriculum, as in its paper (200 of 300)."""

KEPT = ("accuracy", "train_seconds", "train_device_seconds", "reference_steps", "train_flops", "passes_saved")
COST = sum(
    method.get("share", 1.0) * (1 - SAVING * ("pruning.method" in method)) for method in METHODS.values()
)
"""Runs of one seed, in full runs."""

EPOCHS = range(8, 25)
TINY_EPOCHS = 6
MOST_SEEDS = 5


def measure(rows: Rows, kit: Kit) -> str:
    """Fill the rows; gives the part's table."""
    base = _base(kit)
    trial = rows.add("trial", lambda: _trial(base))
    if trial is None:
        return ""
    plan = rows.add("plan", lambda: {"epochs": TINY_EPOCHS if kit.tiny else _epochs(trial, rows.until)})
    assert plan is not None
    runs: dict[str, list[Row]] = {name: [] for name in METHODS}
    for seed in range(1 if kit.tiny else MOST_SEEDS):
        for name in METHODS:
            experiment = _experiment(base, name, plan["epochs"], seed)
            expected = trial["setup"] + plan["epochs"] * trial["epoch"] * _cost(name)
            row = rows.add(f"{name}, seed {seed}", lambda e=experiment: _run(e), expected=expected, like=name)
            if row is not None:
                runs[name].append(row["metrics"])
    return _report(runs, plan["epochs"])


def _base(kit: Kit) -> Experiment:
    small = {"model.name": "resnet8", "train.batch_size": 64, "train.precision": "fp32"} if kit.tiny else {}
    return load_experiment(
        "cifar10-resnet18",
        {
            "data.source": "parquet",
            "data.train": str(kit.data / "cifar10-train.parquet"),
            "data.test": str(kit.data / "cifar10-test.parquet"),
            "data.image_size": 32,
            "data.augment": "crop-flip",
            "data.val_fraction": 0,
            "data.loader": "device",
            "train.batch_size": 512,
            "train.lr": 0.2,
            "train.eval_every": 0,
            "train.checkpoint_every": 0,
            "train.device": kit.device.type,
            "pruning.method": "none",
            **small,
        },
    )


def _experiment(base: Experiment, name: str, epochs: int, seed: int) -> Experiment:
    keys = dict(METHODS[name])
    budget = max(1, round(epochs * keys.pop("share", 1.0)))
    return base.with_overrides({**keys, "train.epochs": budget, "train.seed": seed})


def _cost(name: str) -> float:
    return METHODS[name].get("share", 1.0)


def _trial(base: Experiment) -> Row:
    """Seconds of an epoch and of all that is not training, of a run of two epochs."""
    begun = time.monotonic()
    _run(base.with_overrides({"train.epochs": 1}))  # what only the process's first run pays
    first, begun = time.monotonic() - begun, time.monotonic()
    metrics = _run(base.with_overrides({"train.epochs": 2}))["metrics"]
    taken = time.monotonic() - begun
    epoch = metrics["train_seconds"] / 2
    return {"epoch": epoch, "setup": taken - 2 * epoch, "first_run": first}


def _epochs(trial: Row, until: float) -> int:
    """What lets two seeds of every method fit the time."""
    left = 0.95 * (until - time.monotonic()) / 2 - len(METHODS) * trial["setup"]
    return min(max(int(left / (COST * trial["epoch"])), EPOCHS.start), EPOCHS.stop - 1)


def _run(experiment: Experiment) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        metrics = run(experiment, LocalReporter(Path(folder))).to_dict()
    return {key: metrics[key] for key in KEPT if key in metrics} | {"metrics": metrics}


def _report(runs: dict[str, list[Row]], epochs: int) -> str:
    compared = []
    for name, of_method in runs.items():
        baselines = runs["none"][: max(1, len(of_method))]
        if not of_method or not baselines:
            continue
        mean = {key: sum(run.get(key, 0.0) for run in of_method) / len(of_method) for key in KEPT}
        row: Row = {"method": name, "seeds": len(of_method), **mean}
        if name != "none":
            row |= _compared(of_method, baselines)
        compared.append(row)
    columns = {
        "method": "",
        "seeds": "",
        "accuracy": ".2f",
        "difference": "+.2f",
        "interval": "",
        "verdict": "",
    }
    columns |= {"passes_saved": ".1%", "train_seconds": ".1f", "train_device_seconds": ".1f"}
    columns |= {"speedup": ".2f", "wall": ".2f", "flops": ".2f", "disturbed": ""}
    return f"ResNet-18, 50,000 images, {epochs} epochs, batch 512\n\n{table(compared, columns)}"


def _compared(runs: list[Row], baselines: list[Row]) -> Row:
    try:
        sides = ([FinalMetrics.from_dict(run) for run in side] for side in (runs, baselines))
        found = compare(*sides, declared=("train.epochs",))
    except NotComparable as error:
        return {"verdict": str(error)}
    low_high = found.interval
    return {
        "difference": found.difference,
        "interval": None if low_high is None else f"{low_high[0]:+.2f} to {low_high[1]:+.2f}",
        "verdict": found.verdict if len(runs) > 1 else None,
        "speedup": found.speedup.ratio,
        "wall": found.speedup.wall,
        "flops": found.speedup.flops,
        "disturbed": f"{found.speedup.disturbed} {found.speedup.doubt}".strip(),
    }
