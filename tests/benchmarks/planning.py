"""Planning an epoch of 14,197,122 samples (ImageNet-22k), and observing a step, against the naive forms.

    python tests/benchmarks/planning.py [--ranks 2]

Prints three tables: seconds and added peak memory from scores to the order of one rank's indices; the ways
to shuffle that were tried; what `observe` adds to a training step. With --ranks another one instead: what so many
ranks of a node need when they plan at once. Recorded in results/cpu-planning.md.

The naive form is written from the description of the public implementation: boolean indexing,
`numpy.random.choice` without replacement, a Python list of the kept samples, `numpy.random.shuffle` on that
list, a sampler that is its own iterator, and a distributed wrapper that runs through it on every rank, pads,
strides and hands one Python int at a time to a batch sampler. Every form runs in a process of its own (for its
peak memory), in turn. Ratios are of processor seconds, which other programs on the machine disturb less; all
forms but the two-thread shuffle are of one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raytrain_speedup.engine.steps import epoch_steps
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning import InfoBatch, shard

N, BATCH, WORLD = 14_197_122, 1024, 8


# --- scores -> plan -> one rank's order of indices ---


def naive_epoch(scores: np.ndarray) -> int:
    """One epoch as the public implementation makes it; returns how many samples the rank shows."""
    np.random.seed(1)  # noqa: NPY002 - the fault is part of what is measured
    mask = scores < scores.mean()
    learned = np.where(mask)[0]
    kept = np.random.choice(learned, int(0.5 * len(learned)), replace=False)  # noqa: NPY002
    weights = np.ones(len(scores), dtype=np.float32)
    weights[kept] = 2.0
    order = list(np.where(~mask)[0])
    order.extend(list(kept))
    np.random.shuffle(order)  # noqa: NPY002
    return sum(len(batch) for batch in naive_batches(naive_rank(NaiveSampler(order))))


class NaiveSampler:
    """A sampler that is its own iterator."""

    def __init__(self, order: list) -> None:
        self.order = order

    def __iter__(self) -> NaiveSampler:
        self.iterator = iter(self.order)
        return self

    def __next__(self) -> int:
        return next(self.iterator)


def naive_rank(sampler: NaiveSampler) -> Iterator[int]:
    """A distributed wrapper: list what the sampler yields, pad, stride, look up one sample at a time."""
    order = list(sampler)
    positions = list(range(len(order)))
    positions += positions[: -len(positions) % WORLD]
    return iter([order[position] for position in positions[0::WORLD]])


def naive_batches(samples: Iterator[int]) -> Iterator[list[int]]:
    """A batch sampler; the batch size is one rank's part of the global one."""
    batch: list[int] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH // WORLD:
            yield batch
            batch = []
    if batch:
        yield batch


def run_naive(connection, _: dict) -> None:
    """Scores live in a NumPy array, as they do there."""
    before = peak_bytes()
    scores = np.random.default_rng(0).exponential(size=N).astype(np.float32)
    connection.send(timed(lambda: naive_epoch(scores), before))


def run_ours(connection, options: dict) -> None:
    """State, plan and order of `InfoBatch`."""
    before = peak_bytes()
    pruner = InfoBatch(N, epochs=10, **options)
    for start in range(0, N, 1 << 20):
        part = torch.arange(start, min(start + (1 << 20), N))
        pruner.observe(part, torch.empty(len(part)).exponential_())

    def epoch() -> int:
        plan = pruner.plan(1)
        return sum(len(index) for index, _ in shard(plan, batch_size=BATCH, rank=0, world=WORLD))

    connection.send(timed(epoch, before))


def timed(epoch: Callable[[], int], before: int) -> tuple[float, float, float, int]:
    """(wall seconds, processor seconds, MB the process's peak grew by, samples this rank shows)."""
    wall, processor = time.perf_counter(), time.process_time()
    shown = epoch()
    return (
        time.perf_counter() - wall,
        time.process_time() - processor,
        (peak_bytes() - before) / 1e6,
        shown,
    )


def peak_bytes() -> int:
    """The process's peak resident memory."""
    return kept_bytes("VmHWM")


def kept_bytes(kind: str) -> int:
    """The process's resident memory: now (VmRSS) or at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if kind in line)
    return int(line.split()[1]) * 1024


def in_a_process(target: Callable, options: dict) -> tuple[float, float, float, int]:
    """Run in a fresh process, so that its peak memory is its own."""
    receiving, sending = mp.get_context("spawn").Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=target, args=(sending, options))
    process.start()
    result = receiving.recv()
    process.join()
    return result


def planning_table(rounds: int) -> None:
    """Medians over interleaved rounds."""
    forms = {
        "naive (choice, lists)": (run_naive, {}),
        "InfoBatch, mean, r = .5": (run_ours, {"prune_ratio": 0.5}),
        "InfoBatch, quantile": (run_ours, {"threshold": "quantile"}),
        "InfoBatch, saving .4": (run_ours, {"saving": 0.4}),
        "full data (annealing)": (run_ours, {"anneal_from": 0.0}),
    }
    results: dict[str, list] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, (target, options) in forms.items():
            results[name].append(in_a_process(target, options))
    print("| scores -> plan -> one rank's order | wall s | processor s | times naive | added peak MB |")
    print("|---|--:|--:|--:|--:|")
    naive = statistics.median(processor for _, processor, _, _ in results["naive (choice, lists)"])
    for name, rows in results.items():
        wall, processor, memory = (statistics.median(row[i] for row in rows) for i in range(3))
        print(f"| {name} | {wall:.2f} | {processor:.2f} | {naive / processor:.0f} | {memory:.0f} |")


def run_rank(connection, rank: int, barrier) -> None:
    """Sends (processor seconds of plan and steps, those of the steps, MB held) of three epochs by two settings."""
    torch.set_num_threads(1)
    budget, rows = Budget(10, N, [FULL]), []
    for options in ({"prune_ratio": 0.5}, {"saving": 0.4}):
        pruner = InfoBatch(N, epochs=10, **options)
        for start in range(0, N, 1 << 20):
            part = torch.arange(start, min(start + (1 << 20), N))
            pruner.observe(part, torch.empty(len(part)).exponential_())
        for epoch in (1, 2, 3):
            barrier.wait()
            held, began = kept_bytes("VmRSS"), time.process_time()
            plan = pruner.plan(epoch)
            planned = time.process_time()
            steps = epoch_steps(plan, budget, epoch, batch_size=BATCH, rank=rank, world=WORLD)
            done = time.process_time()
            rows.append((str(options), done - began, done - planned, (kept_bytes("VmRSS") - held) / 1e6))
            del plan, steps
    connection.send(rows)


def ranks_table(ranks: int) -> None:
    """So many processes that plan the same epochs at once."""
    spawn = mp.get_context("spawn")
    barrier, pipes = spawn.Barrier(ranks), [spawn.Pipe(duplex=False) for _ in range(ranks)]
    for rank, (_, sending) in enumerate(pipes):
        spawn.Process(target=run_rank, args=(sending, rank, barrier)).start()
    print("| rank | method | core-seconds | of it, the steps | held MB |\n|--:|---|--:|--:|--:|")
    for rank, (receiving, _) in enumerate(pipes):
        for name, spent, cut, held in receiving.recv():
            print(f"| {rank} | {name} | {spent:.2f} | {cut:.2f} | {held:.0f} |", flush=True)


# --- ways to shuffle ---


def philox(stream: int = 0) -> np.random.Generator:
    """As in the package."""
    return np.random.Generator(np.random.Philox(key=1, counter=[0, 0, 0, stream]))


def by_packed_sort() -> np.ndarray:
    """The one in use: sort random words in place that carry the index in their low bits."""
    low = np.uint64((1 << (N - 1).bit_length()) - 1)
    words = philox().bit_generator.random_raw(N)
    words &= ~low
    words |= np.arange(N, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)


def by_buckets(threads: int = 1) -> np.ndarray:
    """Scatter into 256 random buckets by a radix argsort of bytes, then shuffle each one in the cache."""
    keys = philox().bit_generator.random_raw(-(-N // 8)).view(np.uint8)[:N]
    order = keys.argsort(kind="stable")
    buckets = np.split(order, np.bincount(keys, minlength=256).cumsum()[:-1])
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda bucket: philox(1 + bucket[0]).shuffle(bucket[1]), enumerate(buckets)))
    return order


def by_feistel() -> np.ndarray:
    """A keyed bijection of 24 bits (4 rounds), walking in cycles until the image is an index."""
    keys = philox().integers(1, 2**32, 4, dtype=np.uint32) | np.uint32(1)
    result = np.arange(N, dtype=np.uint32)
    outside = slice(None)
    while True:
        left, right = result[outside] >> np.uint32(12), result[outside] & np.uint32(4095)
        for key in keys:
            mixed = ((right + key) * np.uint32(0x9E3779B1) ^ key) >> np.uint32(20)
            left, right = right, left ^ mixed
        result[outside] = left << np.uint32(12) | right
        outside = np.flatnonzero(result >= N)
        if not len(outside):
            return result.astype(np.int64)


def by_radix_sort() -> np.ndarray:
    """torch's parallel radix sort of 32-bit keys, for the indices."""
    keys = torch.from_numpy(philox().integers(0, 2**31 - 1, N, dtype=np.int32))
    return torch.sort(keys)[1].numpy()


def shuffling_table(rounds: int) -> None:
    """Medians over interleaved rounds."""
    generator = torch.Generator()
    ways: dict[str, Callable] = {
        "packed uint64 sort, in place (in use)": by_packed_sort,
        "256 buckets, shuffled in the cache": by_buckets,
        "256 buckets, two threads": lambda: by_buckets(2),
        "torch.sort of int32 keys (radix)": by_radix_sort,
        "keyed bijection (Feistel, 4 rounds; only pseudo-uniform)": by_feistel,
        "torch.randperm": lambda: torch.randperm(N, generator=generator).numpy(),
        "numpy Generator.permutation": lambda: philox().permutation(N),
        "numpy Generator.shuffle, int32": lambda: philox().shuffle(np.arange(N, dtype=np.int32)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            order = way()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
            if round_ == 0 and order is not None:
                assert np.array_equal(np.bincount(order, minlength=N), np.ones(N)), name
    print(f"| shuffle of {N:,} | wall s | processor s |\n|---|--:|--:|")
    for name, rows in times.items():
        wall, processor = (statistics.median(row[i] for row in rows) for i in (0, 1))
        print(f"| {name} | {wall:.3f} | {processor:.3f} |")


# --- what observing adds to a step ---


class Block(nn.Module):
    """A residual block of ResNet-8."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Conv2d(width_in, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu(self.body(x_BCHW) + self.skip(x_BCHW))


def observing_table(steps: int) -> None:
    """Median processor time of a step of ResNet-8 at batch 128, and of `observe` beside it, interleaved."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss(reduction="none")
    pruner = InfoBatch(N, epochs=10)
    x_BCHW, target = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    weight = torch.ones(128)
    plain, observing = [], []
    for _ in range(steps):
        index = torch.randint(N, (128,))
        start = time.process_time()
        losses = criterion(model(x_BCHW), target)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        middle = time.process_time()
        pruner.observe(index, losses)
        losses.detach() * weight
        plain.append(middle - start)
        observing.append(time.process_time() - middle)
    step, extra = statistics.median(plain), statistics.median(observing)
    print("| step of ResNet-8, batch 128, CPU | processor ms |\n|---|--:|")
    print(f"| plain step | {step * 1e3:.2f} |")
    print(f"| observe and weigh, among {N:,} samples | {extra * 1e3:.3f} |")
    print(f"| added | {extra / step:.2%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", type=int, help="only so many ranks that plan at once")
    args = parser.parse_args()
    if args.ranks:
        ranks_table(args.ranks)
        raise SystemExit
    observing_table(args.steps)
    print()
    shuffling_table(args.rounds)
    print()
    planning_table(args.rounds)
