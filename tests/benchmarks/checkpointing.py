"""How long a training waits for a checkpoint: written by the step that takes it, and beside the steps after it.

    OMP_NUM_THREADS=1 python tests/benchmarks/checkpointing.py [--parameters 131e6] [--rounds 5] [--folder /tmp]

A network of so many parameters with AdamW's moments (3 x 4 bytes each: 131 million are 1.57 GB, as much as a
checkpoint of CSWin-B has), in one process on a CPU. The steps after it are compared with steps that nothing is
written beside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from side_by_side import provenance
from torch import nn

from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint, snapshot
from raytrain_speedup.engine.local import LocalReporter

WIDTH = 2048


class Training:
    """Steps of a network whose parameters alone weigh: it sees one sample at a time."""

    def __init__(self, parameters: float) -> None:
        layers = max(1, round(parameters / WIDTH**2))
        self.model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.step()

    def step(self) -> float:
        began = time.perf_counter()
        self.model(torch.ones(16, WIDTH)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began

    def files(self) -> dict[str, object]:
        return {
            "rank-0.pt": {},
            "run.pt": {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=131e6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to write to")
    asked = parser.parse_args()
    training = Training(asked.parameters)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        reporter = LocalReporter(Path(folder) / "run")
        for _ in range(asked.rounds):
            alone = [training.step() for _ in range(4)]
            began = time.perf_counter()
            reporter.report({}, Checkpoint(reporter.new_folder(), training.files()))
            reporter.settle()
            whole = time.perf_counter() - began
            began = time.perf_counter()
            reporter.report({}, Checkpoint(reporter.new_folder(), snapshot(training.files())))
            blocked = time.perf_counter() - began
            beside = [training.step()]
            while not reporter._saver._under_way.done():  # type: ignore[union-attr]
                beside.append(training.step())
            reporter.settle()
            took = time.perf_counter() - began
            for name, seconds in {
                "written by the step: blocked": whole,
                "written beside the steps: blocked": blocked,
                "until it is whole, beside the steps": took,
                "a step alone": median(alone),
                "a step while it is written": median(beside),
            }.items():
                found.setdefault(name, []).append(seconds)
    print("| s | median | least | most |\n|---|--:|--:|--:|")
    for name, seconds in found.items():
        print(f"| {name} | {median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")
    print(f"\n{provenance([0])}")


if __name__ == "__main__":
    main()
