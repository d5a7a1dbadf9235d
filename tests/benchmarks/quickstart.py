"""Does the first command end with a proven row, in how long, and on a busy machine too?

    python tests/benchmarks/quickstart.py [repetitions] [--busy]

Each repetition is the README's first command in a folder of its own, with another seed of the search. `--busy`
keeps every core busy with programs of `busy_machine.py` throughout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from busy_machine import QUICKSTART, busy

PROVEN = ("lossless", "lossy")
COMMAND = (sys.executable, "-m", "raytrain_speedup.cli")


def repetition(seed: int, *, is_busy: bool) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the command, and the leaderboard's rows."""
    source = str(QUICKSTART.parents[1])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": source, "PWD": folder}
        options: dict[str, Any] = {"cwd": folder, "env": environment, "check": True, "capture_output": True}
        began = time.monotonic()
        with busy(is_busy):
            subprocess.run([*COMMAND, "sweep", str(QUICKSTART), "--seed", str(seed)], **options)
            seconds = time.monotonic() - began
        printed = subprocess.run([*COMMAND, "leaderboard", "--json"], **options, text=True).stdout
        has_schedule = (Path(folder) / "schedule.yaml").is_file()
    rows = json.loads(printed)
    proven = any(row["verdict"] == "lossless" and row["role"] == "winner" for row in rows)
    assert has_schedule == proven, "a schedule is written where a winner is lossless, and only there"
    return seconds, rows


def main() -> None:
    """Print a row for each repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("repetitions", nargs="?", type=int, default=10)
    parser.add_argument("--busy", action="store_true", help="keep every core busy throughout")
    asked = parser.parse_args()
    print("| seed | seconds | winner | difference | speedup | FLOPs | seeds | verdict |")
    print("|--:|--:|---|--:|--:|--:|--:|---|")
    proven = 0
    for seed in range(asked.repetitions):
        seconds, rows = repetition(seed, is_busy=asked.busy)
        winners = [row for row in rows if row["role"] == "winner"]
        proven += any(row["verdict"] in PROVEN for row in winners)
        for row in winners:
            low, high = row["interval"] or (float("nan"), float("nan"))
            fast, slow = row["speedup_interval"] or (float("nan"), float("nan"))
            print(
                f"| {seed} | {seconds:.0f} | {row['settings']} | {row['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
                f" | {row['speedup']:.2f} [{fast:.2f}, {slow:.2f}] | {row['flops_ratio']:.2f}"
                f" | {len(row['seeds'])} | {row['verdict']} |",
                flush=True,
            )
    print(
        f"\n{proven} of {asked.repetitions} with a proven winner; {'every core busy' if asked.busy else 'quiet'}"
    )


if __name__ == "__main__":
    main()
