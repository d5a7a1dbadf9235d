"""From the start of `speedup train --resume` to its first step, on an index of 14.2 million rows.

    python tests/benchmarks/restart.py                 # one process
    python tests/benchmarks/restart.py --val .1        # with a tenth set aside, as a sweep does
    python tests/benchmarks/restart.py --workers 2     # a group of Ray Train workers

The rows are ImageNet-22K's in number and classes; their images are a few that were made up, each the image of
many rows. A training with InfoBatch, begun in its second epoch with scores that were made up too (no 14
million images are read for that), is stopped in the middle of it by Ctrl-C and goes on by its checkpoint.
Prints a table; recorded in results/cpu-indexed.md. The index takes 460 MB of the disk, the checkpoints as
much. Several workers are held after their first steps, so theirs is that of `train.checkpoint_steps`; this file is
a plugin in each of them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

N, CLASSES, IMAGES = 14_197_122, 21_841, 2_000
STEPS = 8  # of the epoch in which it is stopped

MODE, BEGAN, FOUND = "RESTART_MODE", "RESTART_BEGAN", "RESTART_FOUND"
"""Variables that tell workers what to do, since when, and where to write what they found."""

PHASES = {
    "open_data": "index and splits opened",
    "assemble": "test images tried, network built, one step to warm up",
    "resume": "checkpoint read",
    "measure": "reference step timed",
    "plan": "epoch planned",
    "epoch_steps": "plan cut into steps",
    "train_step": "first batch read, first step",
}


def write_rows(folder: Path, count: int) -> None:
    """The index of training data, whose rows share some images, and that of test data."""
    from raytrain_speedup.data.index.indexing import make_index
    from raytrain_speedup.data.index.object_store import Stat
    from raytrain_speedup.data.index.writing import ShardRows, write_index
    from raytrain_speedup.data.synthetic import make_images

    make_images(folder / "images", images=IMAGES, classes=10, size=32, processes=1)
    few = make_index(folder / "images", folder / "few.index", processes=1)
    row = np.random.default_rng(0).integers(0, len(few.rows), count)
    stats = [Stat(*map(int, shard.tolist()[:3])) for shard in few.shards]
    shards = [few.name(number) for number in range(len(few.shards))]
    for split, chosen in (("train", row), ("test", np.arange(len(few.rows)))):
        rows, labels = few.rows[chosen], np.arange(len(chosen)) % CLASSES
        names = [f"n{number:08d}" for number in range(min(CLASSES, len(chosen)))]
        part = ShardRows(shards, stats, rows["shard"], rows["offset"], rows["length"], names, labels)
        write_index(folder / f"{split}.index", few.root, [part])


def command_line(folder: Path, val: float, resume: str | None, workers: int) -> list[str]:
    keys = {
        "data.source": "index",
        "data.train": folder / "train.index",
        "data.test": folder / "test.index",
        "data.val_fraction": val,
        "data.image_size": 32,
        "data.loader": "workers",
        "data.num_workers": 1,
        "model.name": "resnet8",
        "pruning.method": "infobatch",
        "pruning.prune_ratio": 0.5,
        "train.epochs": 60,
        "train.batch_size": 1024,
        "train.threads": 1,
        "train.eval_every": 0,
        "scaling.storage": folder / "runs",
    }
    if workers > 1:
        keys |= {"scaling.workers": workers, "train.checkpoint_steps": STEPS}
        keys |= {"plugins": '["restart"]', "python_path": f'["{Path(__file__).parent}"]'}
    tracking = ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    overrides = [f"{key}={value}" for key, value in keys.items()]
    return ["train", "digits", *overrides, *tracking, *(["--resume", resume] if resume else [])]


def memory() -> float:
    """MB that this process has for itself."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1e3


def watched(spent: dict[str, float], name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, whose seconds are noted when it is first called."""

    @functools.wraps(work)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        result = work(*args, **kwargs)
        spent.setdefault(f"{name} began", began)
        spent.setdefault(name, time.time() - began)
        return result

    return call


def instrument(mode: str, began: float, spent: dict[str, float]) -> None:
    """Let this process note when each phase begins and how long it takes; it says so and trains no more after its
    first step (`go-on`), or after some (`begin`)."""
    import torch

    from raytrain_speedup.engine import loop, run
    from raytrain_speedup.engine.cost.reference import Reference
    from raytrain_speedup.methods.pruning.base import Pruner

    run.open_data = watched(spent, "open_data", run.open_data)
    run.assemble = watched(spent, "assemble", run.assemble)
    loop.epoch_steps = watched(spent, "epoch_steps", loop.epoch_steps)
    loop.Loop.resume = watched(spent, "resume", loop.Loop.resume)  # type: ignore[method-assign]
    Reference.measure = watched(spent, "measure", Reference.measure)  # type: ignore[method-assign]
    Pruner.plan = watched(spent, "plan", Pruner.plan)  # type: ignore[method-assign]
    step, fit, steps = loop.Loop.train_step, loop.Loop.fit, [0]

    def train_step(self: Any, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        steps[0] += 1
        if mode == "go-on":
            assert (self.epoch, self.next_step) == (1, STEPS)
            spent["train_step"] = time.time() - spent["epoch_steps began"] - spent["epoch_steps"]
            spent["all"] = time.time() - began
            spent["memory"] = memory()
            tell(self.reporter, spent)
        elif steps[0] == STEPS and FOUND not in os.environ:
            os.kill(os.getpid(), signal.SIGINT)
        elif steps[0] > STEPS and FOUND in os.environ:  # the checkpoint is there
            time.sleep(600)

    def scored(self: Any) -> None:
        samples, rank, world = len(self.loader.splits.train), self.reporter.rank, self.reporter.world
        for part in torch.arange(samples).split(1 << 20):
            own = part[rank::world]
            self.pruner.observe(own, torch.rand(len(own)))
        self.pruner.exchange()
        self.epoch = 1
        fit(self)

    loop.Loop.train_step = train_step  # type: ignore[method-assign]
    if mode == "begin":
        loop.Loop.fit = scored  # type: ignore[method-assign]


def tell(reporter: Any, spent: dict[str, float]) -> None:
    """What one process, or the first worker, found; it trains no more."""
    if FOUND not in os.environ:
        print("FOUND " + json.dumps(spent), flush=True)
        os._exit(0)
    if reporter.rank == 0:
        written = Path(os.environ[FOUND])
        written.with_suffix(".new").write_text(json.dumps(spent))
        written.with_suffix(".new").rename(written)
    time.sleep(600)


def child(mode: str, began: float, arguments: list[str]) -> None:
    """The command itself."""
    from raytrain_speedup import cli

    if FOUND not in os.environ:
        instrument(mode, began, {"imports": time.time() - began})
    sys.argv = ["speedup", *arguments]
    cli.main()


def started(
    mode: str, folder: Path, val: float, resume: str | None = None, workers: int = 1
) -> dict[str, Any]:
    """What a command prints of itself, or what its first worker has written."""
    arguments = command_line(folder, val, resume, workers)
    command = [sys.executable, __file__, "--child", mode, str(time.time()), *arguments]
    if workers > 1:
        return _started_group(mode, folder, command)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if mode == "begin":
        assert done.returncode == 130, done.stdout[-2000:] + done.stderr[-2000:]
        return {}
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found[0].removeprefix("FOUND "))


def _started_group(mode: str, folder: Path, command: list[str]) -> dict[str, Any]:
    """Interrupted with its first checkpoint, or with its first step."""
    written = folder / "found.json"
    written.unlink(missing_ok=True)
    known = {MODE: mode, BEGAN: command[3 + 1], FOUND: str(written)}
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | known, stdout=said, stderr=said)
        whole = "runs/*/checkpoint-*/manifest.json"
        while not (written.exists() or (mode == "begin" and list(folder.glob(whole)))):
            assert process.poll() is None, (folder / "said").read_text()[-2000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        if process.poll() is None:  # its workers were asked to stop, and sleep: the second Ctrl-C ends them
            process.send_signal(signal.SIGINT)
        process.wait(120)
    return {} if mode == "begin" else json.loads(written.read_text())


def table(rows: int, val: float, rounds: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, rows)
        started("begin", folder, val, workers=workers)
        (run_folder,) = (folder / "runs").iterdir()
        size = sum(file.stat().st_size for file in run_folder.rglob("*") if file.is_file())
        found = [started("go-on", folder, val, str(run_folder), workers) for _ in range(rounds)]
    median = {key: statistics.median(one[key] for one in found) for key in found[0]}
    first = "imports" if workers == 1 else "Ray and the workers started, their imports"
    told = {"imports": first, **PHASES}
    print(f"| {rows:,} rows, val_fraction {val:g}, {workers} workers | s |\n|---|--:|")
    for key, what in told.items():
        print(f"| {what} | {median[key]:.1f} |")
    print(f"| command line, tracker and the rest | {median['all'] - sum(median[key] for key in told):.1f} |")
    totals = ", ".join(f"{one['all']:.1f}" for one in found)
    print(f"| from the start of the command to the end of the first step, {rounds} times | {totals} |")
    print(f"\n{median['memory']:.0f} MB of its own; the checkpoint has {size / 1e6:.0f} MB.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=N)
    parser.add_argument("--val", type=float, default=0.0, help="data.val_fraction")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    table(args.rows, args.val, args.rounds, args.workers)

if __name__ == "restart" and MODE in os.environ:  # in the command and in its workers, as a plugin
    since = float(os.environ[BEGAN])
    instrument(os.environ[MODE], since, {"imports": time.time() - since})
