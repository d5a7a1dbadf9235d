"""A sweep on Ray's fake provider of nodes that loses half of them: what it costs beyond the steps that were lost.

    python tests/benchmarks/lost_node.py

A head without CPUs and two nodes of one CPU each, which Ray's autoscaler starts here as processes. The sweep runs
twice: undisturbed, and with one node killed in the middle of a trial. Every step of every trial is written down,
with the CPU seconds of its process. Prints a table; recorded in results/cpu-lost-node.md. A short form of it is
tests/scaling/test_half_of_the_nodes.py, by steps alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from counted_sweep import TRIALS, Taken, swept
from fake_provider import fake_cluster

EPOCHS = int(os.environ.get("EPOCHS", "120"))


def work(taken: list[Taken]) -> tuple[float, float, float]:
    """CPU seconds: of the processes up to their last step, of steps taken again, and before the first steps."""
    total = start = again = 0.0
    seen: set[tuple[str, tuple[int, int]]] = set()
    for pid in dict.fromkeys(step.pid for step in taken):
        own = [step for step in taken if step.pid == pid]
        total, start = total + own[-1].cpu, start + own[0].cpu
    last: dict[int, float] = {}
    for step in taken:
        spent = step.cpu - last.get(step.pid, step.cpu)
        again += spent if (step.trial, step.at) in seen else 0.0
        seen.add((step.trial, step.at))
        last[step.pid] = step.cpu
    return total, again, start


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="ln"))  # a short path: Ray's sockets live below it
    try:
        with fake_cluster(home) as address:
            whole = swept(home, address, "whole", epochs=EPOCHS, disturbed=False)
        shutil.rmtree(home / "ray", ignore_errors=True)
        with fake_cluster(home) as address:
            lost = swept(home, address, "lost", epochs=EPOCHS, disturbed=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"| {TRIALS} trials of {EPOCHS} epochs, two nodes | undisturbed | one killed |\n|---|--:|--:|")
    rows = []
    for sweep in (whole, lost):
        again = {trial for (trial, _), count in sweep.counts.items() if count > 1}
        pids = {step.pid for step in sweep.taken}
        steps, repeated = len(sweep.counts), len(sweep.taken) - len(sweep.counts)
        rows.append((steps, repeated, len(again), len(pids), *work(sweep.taken), sweep.seconds))
    names = (
        *("steps of the trials", "steps taken again", "trials that took steps again", "processes"),
        *("CPU s in all", "CPU s of steps taken again", "CPU s before first steps", "wall s"),
    )
    for name, *values in zip(names, *rows, strict=True):
        shown = " | ".join(f"{value:,.0f}" if isinstance(value, int) else f"{value:,.1f}" for value in values)
        print(f"| {name} | {shown} |")
    extra = rows[1][4] - rows[1][5] - rows[0][4]
    print(f"\nBeyond the steps taken again: {extra:+.1f} CPU s, {extra / rows[0][4]:+.1%}.")


if __name__ == "__main__":
    main()
