"""Does the speedup hold while other programs keep the machine busy?

    OMP_NUM_THREADS=1 python tests/benchmarks/busy_machine.py [sweeps] [epochs]

InfoBatch on digits as in the quickstart, three seeds a sweep, baseline and method in turn. Programs of this
script's own keep every core busy during a random half of the runs, or during the baselines alone, the worst that
can happen. Each is bounded in time and ends with the script.

The truth is measured interleaved: a baseline and a method live in one process and take their epochs in turn, so
that whatever slows one slows the other; it is the ratio of their CPU seconds.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from side_by_side import provenance

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.cost.speedup import Speedup
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.run import run
from raytrain_speedup.tuning.space import load_sweep

SEEDS = (0, 1, 2)
QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
METHODS = (
    {"pruning.method": "none"},
    {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 0.85},
)
LONGEST = 1800
"""Seconds that a program which keeps a core busy lives at most; it ends with its run."""

BURN = f"""
import time, numpy
end = time.monotonic() + {LONGEST}
a = numpy.random.default_rng(0).standard_normal((700, 700), dtype=numpy.float32)
while time.monotonic() < end:
    a = numpy.tanh(a @ a)
"""


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Every core busy, if wanted: arithmetic and memory traffic, one program a core."""
    count = (os.cpu_count() or 1) if wanted else 0
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    programs = [subprocess.Popen([sys.executable, "-c", BURN], env=one_thread) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def truth(base: Experiment, folder: Path) -> list[float]:
    """CPU seconds of the baseline over those of the method, their epochs in turn, seed by seed."""
    found = []
    for seed in SEEDS:
        loops = [_loop(base.with_overrides({**keys, "train.seed": seed}), folder) for keys in METHODS]
        for epoch in range(len(loops[0].budget.epoch_ends())):
            for loop in loops[:: 1 if epoch % 2 else -1]:
                loop.train_epoch()
                loop.epoch, loop.next_step, loop.next_sample = loop.epoch + 1, 0, 0
        baseline, method = (loop.watch.trained()[1] for loop in loops)
        found.append(baseline / method)
    return found


def _loop(experiment: Experiment, folder: Path) -> Loop:
    watch = Stopwatch(torch.device("cpu"))
    splits = open_data(experiment.data, seed=experiment.train.seed)
    torch.manual_seed(experiment.train.seed)
    return assemble(experiment, splits, LocalReporter(folder), watch)[0]


def sweep(base: Experiment, loaded: Sequence[tuple[bool, bool]]) -> tuple[Speedup, float]:
    """The speedup over the seeds, and by CPU seconds without a yardstick; `loaded` says of each seed which of
    its two runs, baseline and method, the machine was busy in."""
    sides: tuple[list[FinalMetrics], ...] = ([], [])
    for seed, load in zip(SEEDS, loaded, strict=True):
        for side, keys, is_busy in zip(sides, METHODS, load, strict=True):
            experiment = base.with_overrides({**keys, "train.seed": seed})
            with busy(is_busy), tempfile.TemporaryDirectory() as folder:
                side.append(run(experiment, LocalReporter(Path(folder)), test=False))
    cpu = [fmean(math.log(found.costs.train_cpu_seconds or math.nan) for found in side) for side in sides]
    return Speedup.of(sides[1], sides[0]), math.exp(cpu[0] - cpu[1])


def main() -> None:
    """Print the table."""
    sweeps = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    keys = {"train.eval_every": 0, "train.checkpoint_every": 0}
    budget = {"train.epochs": int(sys.argv[2])} if len(sys.argv) > 2 else {}
    base = load_sweep(QUICKSTART, keys | budget).base
    with tempfile.TemporaryDirectory() as folder:
        ratios = truth(base, Path(folder))
        true = math.exp(fmean(map(math.log, ratios)))
    print(f"interleaved: {true:.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})\n", flush=True)
    print(
        "load on            reference steps     90 % interval  holds  within 8 %    CPU s   wall s  FLOPs",
        flush=True,
    )
    chance = random.Random(0)
    right = held = 0
    for number in range(sweeps + 1):
        where = "a random half" if number else "the baselines"
        halves = chance.sample([True, False] * 3, 6) if number else [True, False] * 3
        found, cpu = sweep(base, list(zip(halves[::2], halves[1::2], strict=True)))
        assert found.ratio is not None and found.interval is not None
        low, high = found.interval
        close, inside = abs(found.ratio / true - 1) <= 0.08, low <= true <= high
        right, held = right + (close and number > 0), held + (inside and number > 0)
        print(
            f"{where:<18} {found.ratio:15.3f}     [{low:.3f}, {high:.3f}]  {'yes' if inside else 'NO':>5}"
            f"  {'yes' if close else 'NO':>10}  {cpu:7.3f}  {found.wall:7.3f}  {found.flops:5.3f}",
            flush=True,
        )
    print(f"\n{right} of {sweeps} within 8 % of the truth, {held} of {sweeps} intervals hold it")
    print(provenance(SEEDS))


if __name__ == "__main__":
    main()
