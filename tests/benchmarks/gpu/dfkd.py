"""FastDFKD on WRN-40-2 -> WRN-16-1: a call and its student steps against the naive form, and one short run.

Both forms are those of `distillation_step.py`.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.distillation.fastdfkd import FastDFKDSettings
from tests.benchmarks.distillation_step import Naive, Ours, cost, wide_resnet
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table

STUDENT_STEPS = 40
REPEATS = 3
EARLIER = 3
"""Calls whose images are in the pool beforehand; they also warm everything up."""

RUN_SECONDS = 110.0


def measure(rows: Rows, kit: Kit) -> str:
    rows.add("step", partial(_step, kit), expected=25)
    rows.add("run", partial(_run, kit), expected=0 if kit.tiny else RUN_SECONDS)
    step = {
        "naive_call": ".3f",
        "our_call": ".3f",
        "naive_steps": ".3f",
        "our_steps": ".3f",
        "speedup": ".2f",
    }
    run_ = {"accuracy": ".2f", "teacher_seconds": ".1f", "synthesis_seconds": ".1f", "train_seconds": ".1f"}
    return (
        f"Seconds of a call (k = 10, batch 256) and of {STUDENT_STEPS} student steps; medians\n\n"
        f"{table(rows.rows, step)}\n\nA short run, its teacher trained first\n\n{table(rows.rows, run_)}"
    )


def _step(kit: Kit) -> Row:
    how = FastDFKDSettings(batch_size=16 if kit.tiny else 256, warmup=0, **({"steps": 2} if kit.tiny else {}))
    options = Namespace(size=32, device=kit.device.type, workers=0 if kit.tiny else 4)
    steps = 2 if kit.tiny else STUDENT_STEPS
    torch.manual_seed(0)
    teacher = wide_resnet(1 if kit.tiny else 2, blocks=1 if kit.tiny else 6).to(kit.device)
    student = wide_resnet(1, blocks=1 if kit.tiny else 2).to(kit.device)
    with tempfile.TemporaryDirectory() as folder:
        naive_networks = copy.deepcopy((teacher, student))
        forms: dict[str, Naive | Ours] = {
            "naive": Naive(how, *naive_networks, options, Path(folder)),
            "our": Ours(how, teacher, student, options),
        }
        earlier = 1 if kit.tiny else EARLIER
        for form in forms.values():
            for call in range(earlier):
                form.synthesise(call)
            form.distill(0, 2)
        taken: dict[str, list[float]] = {f"{name}_{what}": [] for name in forms for what in ("call", "steps")}
        for call in range(earlier, earlier + (1 if kit.tiny else REPEATS)):
            for name, form in forms.items():
                taken[f"{name}_call"].append(cost(form.synthesise, call).wall)
                taken[f"{name}_steps"].append(cost(form.distill, call, steps).wall)
    row: Row = {name: statistics.median(seconds) for name, seconds in taken.items()}
    naive, ours = (row[f"{name}_call"] + row[f"{name}_steps"] for name in forms)
    return row | {"speedup": naive / ours}


def _run(kit: Kit) -> Row:
    """The recipe with 6 epochs of the teacher and 40 calls: too short for an accuracy like the paper's."""
    own = {"teacher.train.epochs": 6, "train.epochs": 40, "distillation.warmup": 4}
    with tempfile.TemporaryDirectory() as folder:
        metrics = run(on_cifar10(kit, own), LocalReporter(Path(folder))).to_dict()
    shown = ("accuracy", "teacher_seconds", "synthesis_seconds", "train_seconds", "train_flops")
    return {name: metrics[name] for name in shown} | {"metrics": metrics}


def on_cifar10(kit: Kit, own: Mapping[str, Any]) -> Experiment:
    """The recipe with larger batches for the teacher, fewer steps for the student, and keys of one's own."""
    keys = {
        "data.source": "parquet",
        "data.train": str(kit.data / "cifar10-train.parquet"),
        "data.test": str(kit.data / "cifar10-test.parquet"),
        "data.image_size": 32,
        "data.augment": "crop-flip",
        "data.val_fraction": 0,
        "teacher.train.batch_size": 512,
        "teacher.train.lr": 0.4,
        "train.precision": "bf16",
        "train.eval_every": 0,
        "train.checkpoint_every": 0,
        "train.device": kit.device.type,
        "distillation.student_steps": STUDENT_STEPS,
        **own,
    }
    if kit.tiny:
        keys |= {
            "data.image_size": 8,  # the images that students are judged on take most of the time
            "teacher.model.name": "wrn16_1",
            "teacher.train.epochs": 1,
            "teacher.train.batch_size": 64,
            "teacher.train.precision": "fp32",
            "train.epochs": 1,
            "train.batch_size": 16,
            "train.precision": "fp32",
            "distillation.batch_size": 16,
            "distillation.warmup": 1,
            "distillation.steps": 2,
            "distillation.student_steps": 2,
        }
    return load_experiment("cifar10-wrn40_2-wrn16_1", keys)
