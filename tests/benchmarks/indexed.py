"""Indexes at the size of ImageNet-22K, their reads beside loose files', and the bytes that pruning spares.

    python tests/benchmarks/indexed.py rows       # 14.2 million rows: opening, memory, locating, plans of 64 ranks
    python tests/benchmarks/indexed.py store      # bytes sent by a loopback S3 server, with pruning and without
    python tests/benchmarks/indexed.py rates      # indexing and images/s of tar files beside loose files
    python tests/benchmarks/indexed.py parquet --data ../shared/data    # bytes of photographs in Parquet files

Prints tables; recorded in results/cpu-indexed.md. Memory is what a process has for itself (anonymous pages): those
of mapped tables are the system's cache, once for all processes of a machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from loopback_s3 import LoopbackS3

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import SOURCES, build_loader, open_data
from raytrain_speedup.data.base import Source
from raytrain_speedup.data.batch import Step
from raytrain_speedup.data.index.indexed import IndexedSource
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.shards import open_index
from raytrain_speedup.data.index.writing import ShardRows, write_index
from raytrain_speedup.data.parquet import open_parquet
from raytrain_speedup.data.synthetic import make_images
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.pruning import InfoBatch, shard
from raytrain_speedup.methods.pruning.window import in_windows
from raytrain_speedup.randomness import numpy_generator

N, CLASSES, WORLD = 14_197_122, 21_841, 64
IMAGES, EPOCHS = 240, 6  # in the store: moto answers some hundred requests a second


def own_memory() -> float:
    """MB that this process has for itself."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1e3


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in a process of its own."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        return pool.apply(work, arguments)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def median_of(works: Callable[[], Any], rounds: int = 3) -> tuple[str, Any]:
    """Wall and processor seconds of one thread, medians, as text; and the last result."""
    wall, processor = [], []
    for _ in range(rounds):
        began = time.process_time()
        seconds, result = timed(works)
        wall.append(seconds)
        processor.append(time.process_time() - began)
    return f"{statistics.median(wall):.2f} s ({statistics.median(processor):.2f} of a core)", result


# --- 14.2 million rows ---


def write_rows(folder: Path) -> None:
    """As ImageNet-22K's: a tar file a class, 110 KB an image."""
    random = np.random.default_rng(0)
    label = np.sort(random.integers(0, CLASSES, N))
    length = random.integers(20_000, 200_000, N)
    end = np.cumsum(length + 512)
    first = np.searchsorted(label, np.arange(CLASSES))
    before = np.r_[0, end[:-1]]
    offset = before - before[first][label] + 512
    names = [f"n{number:08d}.tar" for number in range(CLASSES)]
    sizes = np.bincount(label, weights=length + 512).astype(np.int64)
    stats = [Stat(int(size), 0, 0) for size in sizes]
    part = ShardRows(names, stats, label, offset, length, [name[:-4] for name in names], label)
    write_index(folder, "/nowhere", [part])


def opened(folder: Path) -> dict[str, float]:
    """Of one process: seconds to open an index and to locate samples, and the memory that both add."""
    before = own_memory()
    opening, index = timed(lambda: open_index(folder))
    random = np.random.default_rng(1)
    locating = []
    for _ in range(21):
        rows = random.integers(0, N, 256)

        def locate(rows: np.ndarray = rows) -> list[str]:
            return [index.name(int(at)) for at in index.rows[rows]["shard"]]

        locating.append(timed(locate)[0])
    return {
        "open": opening,
        "locate": statistics.median(locating),
        "locate, first": locating[0],
        "memory": own_memory() - before,
    }


SPLITS: dict[str, dict[str, Any]] = {
    "with a test split": {"val_fraction": 0},
    "a hundredth held back as the test split": {"val_fraction": 0, "test_fraction": 0.01},
    "and a tenth of the rest for validation": {"val_fraction": 0.1, "test_fraction": 0.01},
}


def read_whole(folder: Path, keys: dict[str, Any]) -> dict[str, float]:
    """Of one process: the splits of an experiment, as every rank opens them, but for the images."""
    before = own_memory()
    own = {} if "test_fraction" in keys else {"test": folder}
    settings = SOURCES["index"](source="index", train=folder, **own, **keys)
    seconds, splits = timed(lambda: open_data(settings, seed=0))
    assert len(splits.train) + len(splits.val) + (0 if own else len(splits.test)) == N
    return {"read": seconds, "memory": own_memory() - before}


def planned() -> dict[str, Any]:
    """A pruned plan, and what 64 ranks take of it."""
    pruner = InfoBatch(N, 10)
    for part in torch.arange(N).split(1 << 20):
        pruner.observe(part, torch.rand(len(part)))
    pruner.exchange()
    planning, plan = median_of(lambda: pruner.plan(2))
    sharing, shares = median_of(
        lambda: [shard(plan, batch_size=4096, rank=rank, world=WORLD) for rank in range(WORLD)]
    )
    count = torch.zeros(N, dtype=torch.int8)
    for share in shares:
        for index, _ in share:
            count[index] += 1
    sizes = [int((share.stops - share.starts).sum()) for share in shares]
    assert int(count.max()) == 1 and int(count.sum()) == plan.kept == sum(sizes)
    assert len({len(share) for share in shares}) == 1
    stretch = np.arange(N) // 1250
    window, _ = median_of(lambda: in_windows(plan, stretch, 10_000, seed=0, epoch=2))
    apart = max(sizes) - min(sizes)
    return {"plan": planning, "share": sharing, "kept": plan.kept, "apart": apart, "window": window}


def rows_table() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        in_a_process(write_rows, folder)
        one = [in_a_process(opened, folder) for _ in range(5)]
        whole = {name: in_a_process(read_whole, folder, keys) for name, keys in SPLITS.items()}
        plan = in_a_process(planned)

    def median(key: str) -> float:
        return statistics.median(found[key] for found in one)

    print(f"| an index of {N:,} rows, {CLASSES:,} shards | | bar |\n|---|--:|--:|")
    print(f"| opened | {median('open') * 1e3:.1f} ms | 100 ms |")
    print(f"| memory added, 5,376 samples located | {median('memory'):.1f} MB | 100 MB |")
    print(f"| 256 random samples located | {median('locate') * 1e3:.2f} ms | 2 ms |")
    print(f"| the first 256 of a process | {median('locate, first') * 1e3:.2f} ms | |")
    for name, found in whole.items():
        print(f"| splits opened: {name} | {found['read']:.2f} s, {found['memory']:.0f} MB | |")
    print(f"| plan (InfoBatch, {plan['kept']:,} kept) | {plan['plan']} | |")
    print(
        f"| its shares for {WORLD} ranks, which differ by {plan['apart']} sample | {plan['share']} | both: 3 s |"
    )
    print(f"| the plan in windows of 10,000 | {plan['window']} more | |")


# --- bytes from a store ---


def on_a_store(train: Path, test: Path, method: dict[str, Any]) -> Experiment:
    known = {
        "data.source": "index",
        "data.train": train,
        "data.test": test,
        "data.image_size": 96,
        "data.val_fraction": 0,
        "data.loader": "workers",
        "data.num_workers": 1,
        "model.name": "resnet8",
        "train.epochs": EPOCHS,
        "train.batch_size": 64,
        "train.threads": 1,
        "train.eval_every": 0,
        "train.checkpoint_every": 0,
    }
    return load_experiment("digits", known | method)


def store_table() -> None:
    """A small network on images in S3; evaluation reads from the disk."""
    methods = {
        "no pruning": {"pruning.method": "none"},
        "random, saving .4": {"pruning.method": "random", "pruning.saving": 0.4},
        "InfoBatch, saving .4": {"pruning.method": "infobatch", "pruning.saving": 0.4},
    }
    methods["random, saving .4, windows of 60"] = methods["random, saving .4"] | {"data.window": 60}
    with tempfile.TemporaryDirectory() as name, LoopbackS3().running() as s3:
        folder = Path(name)
        make_images(folder / "train", images=IMAGES, classes=10, size=128, per_shard=30)
        make_images(folder / "test", images=64, classes=10, size=128, per_shard=64, seed=1)
        make_index(folder / "test", folder / "test.index")
        uri = s3.put_folder(folder / "train", "train")
        size = sum(file.stat().st_size for file in (folder / "train").iterdir())
        s3.clear()
        index = make_index(uri, folder / "train.index")
        print(
            f"Indexed {len(index.rows):,} images of {size / 1e6:.1f} MB: {s3.bytes_sent / 1e6:.2f} MB were sent "
            "in "
            f"{len(s3.requests)} requests.\n"
        )
        print(f"| {EPOCHS} epochs | passes saved | MB sent | bytes saved | requests |\n|---|--:|--:|--:|--:|")
        whole = None
        for method, keys in methods.items():
            s3.clear()
            reporter = LocalReporter(folder / method)
            found = run(on_a_store(index.folder, folder / "test.index", keys), reporter).to_dict()
            sent = s3.bytes_sent
            whole = whole or sent
            saved = found["passes_saved"]
            print(
                f"| {method} | {saved:.1%} | {sent / 1e6:.1f} | {1 - sent / whole:.1%} | {len(s3.requests):,} |"
            )


# --- tar files beside loose files ---


def processor() -> float:
    """Seconds of a core that this process and those it has waited for have taken."""
    return sum(os.times()[:4])


def read_epoch(folder: Path, seed: int) -> None:
    """An epoch in random order, read and decoded by this process."""
    known = {"source": "index", "train": folder, "test": folder, "image_size": 64, "val_fraction": 0}
    settings = SOURCES["index"](**known, augment="crop-flip", loader="workers", num_workers=0)
    splits = open_data(settings, seed=0)
    loader = build_loader(splits, settings, device="cpu", seed=0)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    steps = [
        Step(number, index, torch.ones(len(index)), len(index), 0.0, FULL)
        for number, index in enumerate(order.split(256))
    ]
    assert sum(len(batch["index"]) for batch in loader.train_batches(steps, epoch=0)) == len(splits.train)
    loader.close()


def pruned_epochs(folder: Path, rank: int, epochs: int) -> list[float]:
    """MB that one of four ranks has of its own after each epoch of a pruned run's reads."""
    index = open_index(folder)
    source = IndexedSource(index, index.targets)
    pruner = InfoBatch(len(source), epochs + 2)
    pruner.observe(
        torch.arange(len(source)), torch.from_numpy(np.random.default_rng(0).random(len(source))).float()
    )
    memory = []
    for epoch in range(1, epochs + 1):
        for index_b, _ in shard(pruner.plan(epoch), batch_size=1024, rank=rank, world=4):
            source.encoded_many(index_b.tolist())
        memory.append(own_memory())
    return memory


def rates_table(images: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layouts = ("tar", "folder")
        for layout in layouts:
            make_images(folder / layout, images=images, classes=100, size=64, layout=layout)
        works: dict[str, Callable[[Path, int], Any]] = {
            "indexed by one process (loose files: by threads)": lambda place, seed: make_index(
                place, place.with_suffix(".index"), processes=1
            ),
            "an epoch in random order": lambda place, seed: read_epoch(place.with_suffix(".index"), seed),
        }
        print(f"| {images:,} images of 64 x 64 pixels, images/s | tar files | loose files | ratio |")
        print("|---|--:|--:|--:|")
        for what, work in works.items():
            wall: dict[str, list[float]] = {layout: [] for layout in layouts}
            cores: dict[str, list[float]] = {layout: [] for layout in layouts}
            for round_ in range(rounds):
                for layout in layouts if round_ % 2 else layouts[::-1]:
                    before = processor()
                    seconds, _ = timed(lambda at=folder / layout, seed=round_, do=work: do(at, seed))
                    wall[layout].append(images / seconds)
                    cores[layout].append(images / (processor() - before))
            for unit, rates in (("wall second", wall), ("second of a core", cores)):
                ratios = [a / b for a, b in zip(rates["tar"], rates["folder"], strict=True)]
                tar, loose = (statistics.median(rates[layout]) for layout in layouts)
                print(
                    f"| {what}, per {unit} | {tar:,.0f} | {loose:,.0f} | {statistics.median(ratios):.2f} "
                    f"({min(ratios):.2f}-{max(ratios):.2f}) |"
                )
        context = multiprocessing.get_context("fork")
        with context.Pool(4) as pool:
            memory = pool.starmap(pruned_epochs, [(folder / "tar.index", rank, 8) for rank in range(4)])
        first, last = ([found[epoch] for found in memory] for epoch in (0, -1))
        print(
            f"\nFour processes read pruned epochs from the tar files: {max(first):.1f} MB of their own after the "
            f"first epoch, {max(last):.1f} MB after the eighth."
        )


# --- Parquet ---


def parquet_table(data: Path, rounds: int) -> None:
    """160 photographs ten times over, in row groups of 100 as Hugging Face's: .6 of them in random order, files
    alone, without decoding."""
    one = pq.read_table(data / "imagenet-sample.parquet")
    table = pa.concat_tables([one] * 10).take(numpy_generator(0).permutation(1600))
    images = table.column("image").to_pylist()
    rows = numpy_generator(1).permutation(1600)[:960].tolist()
    own = sum(len(images[row]) for row in rows)
    print(f"960 of {len(images):,} photographs, {own / 1e6:.0f} MB of {sum(map(len, images)) / 1e6:.0f}\n")
    print(
        "| Parquet's pages | indexed, images a second of a core | bytes read, times the images' own | ms an image |"
    )
    print("|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        for compression in ("none", "snappy"):
            file = Path(name) / f"{compression}.parquet"
            pq.write_table(table, file, compression=compression, row_group_size=100)
            index, before = Path(name) / compression, processor()
            made = make_index(file, index, label_column="wnid", processes=1)
            rate, source = 1600 / (processor() - before), IndexedSource(made, made.targets)
            seconds = min(timed(lambda by=source: read_rows(by, rows))[0] for _ in range(rounds))
            ratio = source.bytes_read / rounds / own
            print(f"| {compression}, indexed | {rate:,.0f} | {ratio:.3f} | {seconds / 960 * 1e3:.2f} |")
        for compression in ("none", "snappy", "zstd"):
            file = Path(name) / f"{compression}.parquet"
            pq.write_table(table, file, compression=compression, row_group_size=100)
            grouped, _ = open_parquet("data", "the photographs", [file], "image", "wnid")
            grouped._limit, count = 0, []  # as where the set is larger than memory
            read = grouped._read
            grouped._read = lambda group, read=read, seen=count: (seen.append(group), read(group))[1]
            seconds, _ = timed(lambda by=grouped: read_rows(by, rows[:200]))
            each = pq.ParquetFile(file).metadata.row_group(0).total_byte_size
            ratio = len(count) * each / sum(len(images[row]) for row in rows[:200])
            print(f"| {compression}, by the row group | | {ratio:.0f} | {seconds / 200 * 1e3:.2f} |")


def read_rows(source: Source, rows: list[int]) -> None:
    for start in range(0, len(rows), 64):
        source.encoded_many(rows[start : start + 64])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("rows", "store", "rates", "parquet"))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--data", type=Path, help="of `parquet`: folder with imagenet-sample.parquet")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "rows":
        rows_table()
    elif args.part == "store":
        store_table()
    elif args.part == "parquet":
        parquet_table(args.data, args.rounds)
    else:
        rates_table(args.images, args.rounds)
