"""Runs of several variants of one experiment, in turn, seed after seed, in one process: what the tables share.

The machine's speed drifts, so the variants of a seed follow each other and ratios are taken seed by seed.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import pyarrow.parquet as pq
import torch

import raytrain_speedup
from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run

Metrics = dict[str, Any]

SHARED_KEYS = ("batch_size", "warmup", "student_steps", "temperature", "pool_images")
"""What the methods of distillation have in common."""


def side_by_side(
    base: Experiment,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    seed_keys: Sequence[str] = ("train.seed",),
) -> dict[str, list[Metrics]]:
    """The final metrics of every variant (name: overrides), a list over the seeds each."""
    results: dict[str, list[Metrics]] = {name: [] for name in variants}
    for seed in seeds:
        for name, overrides in variants.items():
            seeded = dict.fromkeys(seed_keys, seed)
            experiment = base.with_overrides({**overrides, **seeded, "train.checkpoint_every": 0})
            with tempfile.TemporaryDirectory() as folder:
                metrics = run(experiment, LocalReporter(Path(folder))).to_dict()
            results[name].append(metrics)
            print(
                f"  seed {seed} {name:24} {metrics['metric']} {metrics[metrics['metric']]:6.2f} "
                f"train {metrics['train_seconds']:7.1f} s  passes saved {metrics['passes_saved']:6.1%}",
                file=sys.stderr,
                flush=True,
            )
    return results


def arguments(doc: str, *, seeds: int = 3, **sizes: float) -> argparse.ArgumentParser:
    """The parser of a table's script: --seeds, and what decides its size.

    Args:
        doc: the script's own; its first line is shown.
        seeds: how many by default.
        sizes: names of options and their defaults, whose types they have.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in {"seeds": seeds, **sizes}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser


def print_methods(results: Mapping[str, list[Metrics]], judged: Mapping[str, tuple[str, str]]) -> None:
    """A Markdown line per variant: what it reached, what it saved, what it cost as fractions of `none`'s.

    Args:
        results: as `side_by_side` gives them.
        judged: of each column its metric and form.
    """
    print(f"\n| method | {' | '.join(judged)} | passes saved | cost | FLOPs |")
    print(f"|---|{'--:|' * (len(judged) + 3)}")
    for name, runs in results.items():
        reached = [spread([run[metric] for run in runs], form) for metric, form in judged.values()]
        saved = mean(run["passes_saved"] for run in runs)
        cost, flops = (middle(ratios(results, name, of, "none")) for of in ("reference_steps", "train_flops"))
        print(f"| {name} | {' | '.join(reached)} | {saved:.0%} | {cost} | {flops} |")


def control(base: Experiment, method: str) -> dict[str, object]:
    """A control: all that the methods share stays as the recipe has it."""
    own = base.distillation.model_dump() if base.distillation is not None else {}
    shared = {f"distillation.{key}": own[key] for key in SHARED_KEYS}
    return {"distillation.method": method, "distillation.augment": own["augment"], **shared}


def ratios(results: Mapping[str, list[Metrics]], name: str, of: str, baseline: str) -> list[float]:
    """A metric of a variant over the baseline's, seed by seed; NaN where reference steps are of another size, as
    those of another budget (`train.epochs`) may be."""
    pairs = list(zip(results[name], results[baseline], strict=True))
    if of == "reference_steps" and any(a["reference_batch"] != b["reference_batch"] for a, b in pairs):
        return [math.nan] * len(pairs)
    return [a[of] / b[of] for a, b in pairs]


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Mean and standard deviation."""
    return f"{form.format(mean(values))} ± {form.format(stdev(values) if len(values) > 1 else 0.0)}"


def middle(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Median, with the extremes; a dash where there is none."""
    if any(map(math.isnan, values)):
        return "-"
    return f"{form.format(median(values))} ({form.format(min(values))}-{form.format(max(values))})"


def first_rows(source: Path, rows: int, target: Path) -> Path:
    """A parquet file of the first rows of another, for a smaller budget."""
    pq.write_table(pq.read_table(source).slice(0, rows), target)
    return target


def small_cifar10(folder: Path, rows: int, keys: Mapping[str, Any]) -> Experiment:
    """ResNet-8 on the first `rows` images of CIFAR-10, evaluated at the end alone; `keys` are overrides."""
    data = data_folder()
    files = {
        "data.train": str(first_rows(data / "cifar10-train.parquet", rows, folder / "train.parquet")),
        "data.test": str(data / "cifar10-test.parquet"),
    }
    return load_experiment("cifar10-resnet8-cpu", {**files, "train.eval_every": 0, **keys})


def data_folder() -> Path:
    """Where the real data sets are: SPEEDUP_DATA, or beside the repository."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SPEEDUP_DATA", beside))
    if not folder.is_dir():
        raise SystemExit(f"no data sets in {folder}; set SPEEDUP_DATA")
    return folder


def provenance(seeds: Sequence[int]) -> str:
    """What ran where: a line under every table."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return (
        f"raytrain_speedup {raytrain_speedup.__version__} at {commit.stdout.strip() or 'an unknown commit'}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"seeds {', '.join(map(str, seeds))}"
    )
