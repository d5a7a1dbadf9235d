"""A million made-up images in tar files: drawn, indexed, and trained on for an epoch by four ranks with pruning.

    python tests/benchmarks/million.py --images 1000000 --place /tmp/million
    python tests/benchmarks/million.py --images 1000000 --loose      # and an epoch beside loose files

The network is a linear layer on 4 x 4 pixels, so that reading and decoding are what takes time. Ranks are processes
of one gloo group, each of which decodes by itself. Prints lines; recorded in results/cpu-indexed.md. A million
images of 32 pixels take 4 GB in tar files and as much again in loose files; all is deleted at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import SOURCES, build_loader, open_data
from raytrain_speedup.data.batch import Step
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.synthetic import make_images
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.reporter import Metrics
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.curriculum.base import FULL

WORLD, CLASSES, SIZE = 4, 100, 32
FRACTIONS = (0.02, 0.1, 0.5, 0.98)  # of an epoch, where memory is looked at


def linear(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, num_classes)
    )


def memory() -> tuple[float, float]:
    """MB that this process has for itself, and MB resident, mapped tables included."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return kb["Anonymous"] / 1e3, kb["Rss"] / 1e3


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


class Watcher(LocalReporter):
    """Notes the memory of its rank over the epochs, and when each began and ended."""

    def __init__(self, folder: Path, rank: int, shown: float) -> None:
        super().__init__(folder / f"rank-{rank}", self._note)
        self.rank, self.world = rank, WORLD
        self.memory: dict[tuple[int, float], tuple[float, float]] = {}
        self.ends: list[tuple[float, float]] = []  # seconds of training, samples shown
        self.kept: list[float] = []
        self._samples = shown

    def _note(self, kind: str, metrics: Metrics) -> None:
        if "kept_fraction" in metrics:
            self.ends.append((float(metrics["train_seconds"]), float(metrics["samples_shown"])))
            self.kept.append(float(metrics["kept_fraction"]))

    def progress(self, metrics: Metrics) -> None:
        epoch, before = int(metrics["epoch"]), self.ends[-1][1] if self.ends else 0.0
        fraction = (float(metrics["samples_shown"]) - before) / self._samples
        for at in FRACTIONS:
            if fraction >= at and (epoch, at) not in self.memory:
                self.memory[epoch, at] = memory()


def experiment(folder: Path, epochs: float) -> Experiment:
    keys = {
        "data.source": "index",
        "data.train": folder / "tar.index",
        "data.test": folder / "test.index",
        "data.val_fraction": 0,
        "data.image_size": SIZE,
        "data.loader": "workers",
        "data.num_workers": 0,
        "model.name": "million:linear",
        "train.epochs": epochs,
        "train.batch_size": 1024,
        "train.channels_last": False,
        "train.threads": 1,
        "train.eval_every": 0,
        "train.checkpoint_every": 0,
        "pruning.method": "infobatch",
        "pruning.prune_ratio": 0.5,
        "pruning.anneal_from": 1.0,
        "python_path": [str(Path(__file__).parent)],
    }
    return load_experiment("digits", keys)


def rank_of_four(rank: int, folder: Path, images: int, epochs: float) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(minutes=30))
    watcher = Watcher(folder, rank, images)
    before = cpu_seconds()
    costs = run(experiment(folder, epochs), watcher, device=torch.device("cpu")).costs
    found = watcher.memory, watcher.ends, watcher.kept, costs.bytes_read, cpu_seconds() - before
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds and seconds of a core."""
    wall, cores = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - wall, cpu_seconds() - cores


def trained(folder: Path, images: int, epochs: float) -> None:
    mp.spawn(rank_of_four, (folder, images, epochs), nprocs=WORLD)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
    _, ends, kept, nbytes, _ = ranks[0]
    print("| epoch | kept | images | wall s | images/s |\n|---|--:|--:|--:|--:|")
    for number, (seconds, shown) in enumerate(ends):
        before = ends[number - 1] if number else (0.0, 0.0)
        wall, count = seconds - before[0], shown - before[1]
        print(f"| {number + 1} | {kept[number]:.1%} | {count:,.0f} | {wall:.0f} | {count / wall:,.0f} |")
    print(f"\n{nbytes / 1e9:.2f} GB were read; {sum(rank[4] for rank in ranks):.0f} s of cores in all.\n")
    print("| memory of a rank, the largest, MB | its own | resident |\n|---|--:|--:|")
    for epoch, at in sorted(ranks[0][0]):
        own, resident = (
            max(rank[0][epoch, at][kind] for rank in ranks if (epoch, at) in rank[0]) for kind in (0, 1)
        )
        print(f"| epoch {epoch}, {at:.0%} of the samples | {own:.1f} | {resident:.1f} |")


# --- beside loose files ---


def read_some(folder: Path, count: int, seed: int) -> None:
    """So many samples in random order, read and decoded by this process."""
    known = {"source": "index", "train": folder, "test": folder, "image_size": SIZE, "val_fraction": 0}
    settings = SOURCES["index"](**known, augment="crop-flip", loader="workers", num_workers=0)
    splits = open_data(settings, seed=0)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[:count]
    steps = [
        Step(number, index, torch.ones(len(index)), len(index), 0.0, FULL)
        for number, index in enumerate(order.split(256))
    ]
    with closing(build_loader(splits, settings, device="cpu", seed=0)) as loader:
        assert sum(len(batch["index"]) for batch in loader.train_batches(steps, epoch=0)) == len(order)


def beside_loose(folder: Path, images: int, count: int, rounds: int) -> None:
    wall, _ = timed(
        lambda: make_images(
            folder / "loose", images=images, classes=CLASSES, size=SIZE, layout="folder", processes=1
        )
    )
    print(f"\nLoose files were written in {wall:.0f} s.")
    wall, cores = timed(lambda: make_index(folder / "loose", folder / "loose.index", processes=1))
    print(f"Indexed: {images / wall:,.0f} a wall second, {images / cores:,.0f} a second of a core.\n")
    ratios: dict[int, list[float]] = {0: [], 1: []}
    rates: dict[str, list[list[float]]] = {"tar": [[], []], "loose": [[], []]}
    for round_ in range(rounds):
        for layout in ("tar", "loose") if round_ % 2 else ("loose", "tar"):
            found = timed(lambda at=layout, seed=round_: read_some(folder / f"{at}.index", count, seed))
            for kind in (0, 1):
                rates[layout][kind].append(count / found[kind])
        for kind in (0, 1):
            ratios[kind].append(rates["tar"][kind][-1] / rates["loose"][kind][-1])
    print(f"| {count:,} of {images:,} in random order, images/s | tar files | loose files | ratio |")
    print("|---|--:|--:|--:|")
    for kind, unit in enumerate(("wall second", "second of a core")):
        tar, loose = (statistics.median(rates[layout][kind]) for layout in ("tar", "loose"))
        ratio = f"{statistics.median(ratios[kind]):.2f} ({min(ratios[kind]):.2f}-{max(ratios[kind]):.2f})"
        print(f"| per {unit} | {tar:,.0f} | {loose:,.0f} | {ratio} |")


def measure(args: argparse.Namespace, folder: Path) -> None:
    images = args.images
    wall, cores = timed(
        lambda: make_images(folder / "tar", images=images, classes=CLASSES, size=SIZE, processes=1)
    )
    size = sum(file.stat().st_size for file in (folder / "tar").iterdir()) / 1e9
    print(
        f"{images:,} images of {SIZE} pixels, {size:.2f} GB of tar files, drawn in {wall:.0f} s "
        f"({images / cores:,.0f} a second of a core).",
        flush=True,
    )
    make_images(folder / "test", images=1000, classes=CLASSES, size=SIZE, seed=1)
    make_index(folder / "test", folder / "test.index", processes=1)
    for processes in (1, 2):
        wall, cores = timed(lambda n=processes: make_index(folder / "tar", folder / "tar.index", processes=n))
        print(
            f"Indexed by {processes} process(es): {images / wall:,.0f} images a wall second, "
            f"{images / cores:,.0f} a second of a core.",
            flush=True,
        )
    if not args.no_training:
        trained(folder, images, args.epochs)
    if args.loose:
        beside_loose(folder, images, args.read or images, args.rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=float, default=1.6, help="of the training; the second is pruned")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--loose", action="store_true", help="and beside loose files")
    parser.add_argument("--read", type=int, help="images of an epoch beside loose files; default: all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--place", type=Path, help="an empty folder; default: in the system's")
    args = parser.parse_args()
    place = args.place or Path(tempfile.mkdtemp())
    try:
        measure(args, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
