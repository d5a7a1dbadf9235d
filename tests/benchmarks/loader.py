"""How fast one worker feeds images of size B, against decoding in full, cropping to 224 and Lanczos to B.

    SPEEDUP_DATA=../shared/data python tests/benchmarks/loader.py

Real ImageNet JPEGs, random-resized-crop, flip and normalisation in all forms, one `DataLoader` worker each,
passes interleaved, medians. `Pillow` is the form of the public recipes; `simplejpeg` is the same with the
faster decoder. Rates are by the clock, and by the processor time of the worker, which is what counts where
other programs run on the machine. A second table is the device loader on CIFAR-10, with the fraction of a
training step it takes. Linux only, for the workers' clocks.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from raytrain_speedup.data import Loader, Step, build_loader, open_data
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.methods.curriculum.base import Stage

DATA = Path(os.environ.get("SPEEDUP_DATA", Path(__file__).parents[3] / "shared" / "data"))
BARS = {96: 1.9, 128: 1.7, 160: 1.5, 224: 1.2}
BATCH, PASSES, REPEATS = 32, 5, 2


class FullDecode(Dataset):
    """Decode in full, crop to 224, then resize to the bandwidth, as EfficientTrain++'s recipe does."""

    def __init__(self, files: list[bytes], size: int, decode: Callable[[bytes], Image.Image]) -> None:
        self.files, self.decode = files, decode
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
        if size != 224:
            steps.append(v2.Resize(size, interpolation=v2.InterpolationMode.LANCZOS))
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        steps.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.files) * REPEATS

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.decode(self.files[index % len(self.files)]))


def with_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def with_simplejpeg(data: bytes) -> Image.Image:
    return Image.fromarray(simplejpeg.decode_jpeg(data))


def steps_of(indices: torch.Tensor, batch: int, stage: Stage) -> list[Step]:
    return [
        Step(number, index, torch.ones(len(index)), len(index), 0.0, stage)
        for number, index in enumerate(indices.split(batch))
    ]


def rates_of(batches: Iterator[Any], worker: Callable[[], int]) -> tuple[float, float]:
    """Images a second by the clock, from the first batch on, and by the worker's processor time."""
    images = len(_inputs(next(batches)))
    clock = (~worker() << 3) | 2  # Linux: the processor clock of another process
    begin, begin_cpu, first = time.perf_counter(), time.clock_gettime(clock), images
    for batch in batches:
        images += len(_inputs(batch))
    seconds, cpu = time.perf_counter() - begin, time.clock_gettime(clock) - begin_cpu
    return (images - first) / seconds, (images - first) / cpu


def _inputs(batch: Any) -> torch.Tensor:
    return batch["inputs"] if isinstance(batch, dict) else batch


def medians(size: int, ours: Loader, naive: dict[str, DataLoader]) -> dict[str, tuple[float, ...]]:
    """(by the clock, by processor time) for each form; the first pass only warms up."""
    stage = Stage(ends_at=1.0, size=size)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *naive)}
    for epoch in range(PASSES + 1):
        order = torch.cat([torch.randperm(len(ours.splits.train)) for _ in range(REPEATS)])
        batches = ours.train_batches(steps_of(order, BATCH, stage), epoch=epoch)
        found["ours"].append(rates_of(batches, lambda: pid_of(ours._groups["train"]._loader)))
        for name, loader in naive.items():
            found[name].append(rates_of(iter(loader), lambda loader=loader: pid_of(loader)))
    return {
        name: tuple(statistics.median(column) for column in zip(*rows[1:], strict=True))
        for name, rows in found.items()
    }


def pid_of(loader: DataLoader) -> int:
    return loader._iterator._workers[0].pid


def worker_table() -> None:
    path = DATA / "imagenet-sample.parquet"
    settings = ParquetSettings(
        train=path,
        test=path,
        label_column="wnid",
        image_size=224,
        val_fraction=0,
        augment="random-resized-crop",
        num_workers=1,
    )
    ours = build_loader(open_data(settings, seed=0), settings, device="cpu", seed=0, kernel="resize")
    files = pq.read_table(path, columns=["image"]).column(0).to_pylist()
    decoders = {"Pillow": with_pillow, "simplejpeg": with_simplejpeg}
    print(
        f"One worker, {len(files)} ImageNet JPEGs, batches of {BATCH}, medians of {PASSES} passes, images/s."
    )
    print("In brackets: images per second of the worker's processor time.\n")
    print("| B | ours | full decode, Pillow | ratio | full decode, simplejpeg | ratio | bar |")
    print("|---|---|---|---|---|---|---|")
    for size, bar in BARS.items():
        naive = {
            name: DataLoader(
                FullDecode(files, size, decode), BATCH, shuffle=True, num_workers=1, persistent_workers=True
            )
            for name, decode in decoders.items()
        }
        rates = medians(size, ours, naive)
        wall, cpu = rates["ours"]
        cells = [f"{wall:.0f} ({cpu:.0f})"]
        for name in decoders:
            other_wall, other_cpu = rates[name]
            cells.append(f"{other_wall:.0f} ({other_cpu:.0f})")
            cells.append(f"{wall / other_wall:.2f} ({cpu / other_cpu:.2f})")
        print(f"| {size} | {' | '.join(cells)} | {bar} |", flush=True)
    ours.close()


def device_table() -> None:
    settings = ParquetSettings(
        train=DATA / "cifar10-train.parquet", test=DATA / "cifar10-test.parquet", cutout=8
    )
    begin = time.perf_counter()
    splits = open_data(settings, seed=0)
    opened = time.perf_counter() - begin
    print("\nDevice loader, CIFAR-10 (45,000 of 50,000), batches of 128, one thread\n")
    print("| augmentation | ms a batch | fraction of a forward and backward pass of a small ConvNet |")
    print("|---|---|---|")
    torch.set_num_threads(1)
    network = nn.Sequential(
        *[nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()],
        *[
            layer
            for _ in range(4)
            for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        ],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)],
    )
    decoded = 0.0
    for augment, cutout in (("none", 0), ("crop-flip", 0), ("crop-flip", 8)):
        chosen = settings.model_copy(update={"augment": augment, "cutout": cutout})
        loader = build_loader(splits, chosen, device="cpu", seed=0)
        steps = steps_of(torch.randperm(len(splits.train))[: 128 * 60], 128, Stage(ends_at=1.0))
        begin = time.perf_counter()
        batches = loader.train_batches(steps, epoch=0)
        next(batches)
        decoded = time.perf_counter() - begin
        ours, theirs = [], []
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            ours.append(time.perf_counter() - begin)
            if batch is None:
                break
            begin = time.perf_counter()
            nn.functional.cross_entropy(network(batch["inputs"]), batch["target"]).backward()
            theirs.append(time.perf_counter() - begin)
        load, step = statistics.median(ours), statistics.median(theirs)
        name = augment + (f" + cutout {cutout}" if cutout else "")
        print(f"| {name} | {load * 1e3:.2f} | {load / step:.1%} |", flush=True)
    print(f"\nOpening takes {opened:.2f} s, decoding the training images {decoded:.2f} s.")


if __name__ == "__main__":
    print(f"torch {torch.__version__}, NumPy {np.__version__}, {os.cpu_count()} cores\n")
    worker_table()
    device_table()
