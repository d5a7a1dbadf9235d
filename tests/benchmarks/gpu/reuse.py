"""FastDFKD as long as its paper runs it: does its meta-generator beat the other starts, with few steps a batch?

CIFAR-10, WRN-16-2 -> WRN-16-1, the recipe's settings with the paper's rates for each k, 100 calls that are
followed by 40 student steps of 256 images, after ten of warm-up. A seed's rows have one teacher, and their students
as many steps. `common` is FastDFKD, `sequential` starts from what the last batch left, `none` from a new generator;
`real` is the training images in the place of synthetic ones.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.engine.statistics.estimate import Estimate
from tests.benchmarks.gpu.dfkd import STUDENT_STEPS, on_cifar10
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table

RATES = {2: {"lr_g": 5e-3, "lr_z": 0.015}, 5: {"lr_g": 3e-3, "lr_z": 0.01}}
"""Of the paper, by k."""

REUSE = ("common", "sequential", "none")
CALLS, WARMUP = 100, 10
TEACHER_EPOCHS = 15
SHOWN = ("teacher_accuracy", "accuracy", "val_agreement", "synthesis_seconds", "train_seconds")


def measure(rows: Rows, kit: Kit) -> str:
    for seed in kit.seeds[:1] if kit.tiny else kit.seeds:
        teacher = partial(_teacher, kit, seed)
        rows.add(f"teacher, seed {seed}", lambda made=teacher: {"file": str(made())}, expected=40)
        for k in list(RATES)[:1] if kit.tiny else RATES:
            for reuse in REUSE:
                own = {"distillation.steps": k, "distillation.reuse": reuse} | {
                    f"distillation.{key}": value for key, value in RATES[k].items()
                }
                _add(rows, kit, f"k = {k}, {reuse}", own, seed)
        _add(rows, kit, "real", {"distillation.method": "real"}, seed)
    columns = {"images": "", "seeds": "", **dict.fromkeys(SHOWN, ""), "less": ""}
    return (
        f"{CALLS} calls of {STUDENT_STEPS} student steps; means and standard deviations over the seeds. `less`: "
        "accuracy below that of common with the same k, 90 %, paired by seed\n\n"
        f"{table(_over_seeds(rows.rows), columns)}"
    )


def _add(rows: Rows, kit: Kit, images: str, own: dict[str, Any], seed: int) -> None:
    work = partial(_distilled, kit, own, seed)
    rows.add(f"{images}, seed {seed}", lambda: {"images": images, **work()}, expected=45, like="distilled")


def _over_seeds(rows: list[Row]) -> list[Row]:
    found = []
    for images in dict.fromkeys(row["images"] for row in rows if "images" in row and "error" not in row):
        same = [row for row in rows if row.get("images") == images and "error" not in row]
        cells = {
            key: f"{fmean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"
            for key in SHOWN
            if len(values := [row[key] for row in same if row.get(key) is not None]) == len(same)
        }
        found.append({"images": images, "seeds": len(same), **cells, "less": _less(rows, images)})
    return found


def _less(rows: list[Row], images: str) -> str | None:
    """By how much the students of `common` are better, with an interval."""
    steps, _, reuse = images.partition(", ")
    accuracy = {row["row"]: row["accuracy"] for row in rows if row.get("accuracy") is not None}
    ends = [name.rpartition(", ")[2] for name in accuracy if name.startswith(f"{images}, ")]
    pairs = [[accuracy.get(f"{one}, {end}") for end in ends] for one in (f"{steps}, common", images)]
    if reuse in ("", "common") or len(ends) < 2 or None in pairs[0]:
        return None
    estimate = Estimate.of(*(np.array(side, dtype=float) for side in pairs), "paired")
    low, high = (float(bound) for bound in estimate.bounds(0.05, 0.05))
    return f"{float(estimate.difference):.2f} ({low:.2f} to {high:.2f})"


def _base(kit: Kit) -> Experiment:
    own = {"teacher.model.name": "wrn16_2", "teacher.train.epochs": TEACHER_EPOCHS, "train.epochs": CALLS}
    return on_cifar10(kit, own | {"distillation.warmup": WARMUP})


def _teacher(kit: Kit, seed: int) -> Path:
    """A seed's teacher, trained where it is not kept yet."""
    folder = kit.out / f"teacher-{seed}"
    if not (latest := LocalReporter(folder).latest()):
        base = _base(kit)
        assert base.teacher is not None and base.teacher.train is not None
        taught = {"model": base.teacher.model.model_dump(), "train": base.teacher.train.model_dump()}
        own = {"train.seed": seed, "train.device": kit.device.type, "teacher": None, "distillation": None}
        run(base.with_overrides({**taught, **own}), LocalReporter(folder))
        latest = LocalReporter(folder).latest()
        assert latest is not None
    return latest / "model.pt"


def _distilled(kit: Kit, own: dict[str, Any], seed: int) -> Row:
    base, given = _base(kit), {"teacher.train": None, "teacher.model.pretrained": str(_teacher(kit, seed))}
    if own.get("distillation.method") == "real":  # what all methods share stays
        assert base.distillation is not None
        shared = base.distillation.model_dump()
        kept = ("batch_size", "warmup", "student_steps", "temperature", "pool_images", "augment")
        own = {"distillation": {"method": "real"} | {key: shared[key] for key in kept}}
    with tempfile.TemporaryDirectory() as folder:
        experiment = base.with_overrides({**own, **given, "train.seed": seed})
        metrics = run(experiment, LocalReporter(Path(folder))).to_dict()
    return {key: metrics.get(key) for key in SHOWN} | {"metrics": metrics}
