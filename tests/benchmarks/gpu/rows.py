"""What the parts share: the rows that are written as they come, the time that is left, and the device's clock."""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

HIDDEN = ("part", "like", "metrics")
"""Of a row, in the terminal."""

MARGIN = 1.15
"""A row is begun only if the longest one like it would still fit with this much to spare."""


class Rows:
    """The results of one part: a JSON line each, on disk as soon as it is there.

    Args:
        file: the lines of all parts; those of an earlier call are kept and not measured again.
        part: whose rows these are.
        until: `time.monotonic()` after which nothing is begun.
        provenance: what every row tells of where it comes from.
    """

    def __init__(self, file: Path, part: str, until: float, provenance: Mapping[str, Any]) -> None:
        self.file, self.part, self.until, self.provenance = file, part, until, dict(provenance)
        self.rows = [row for row in read(file) if row["part"] == part]
        if file.is_file() and not file.read_bytes().endswith(b"\n"):  # cut off by the end of a loan
            file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")

    def add(
        self, name: str, measure: Callable[[], Row], *, expected: float = 0.0, like: str = ""
    ) -> Row | None:
        """Measure a row unless it is there; None where there is no time for it, or where it failed.

        Args:
            name: of the row within its part.
            measure: gives the row's values.
            expected: seconds it takes, as far as is known.
            like: rows of this kind were as long.
        """
        done = next((row for row in self.rows if row["row"] == name and "error" not in row), None)
        if done is not None:
            return done
        same = [row["row_seconds"] for row in self.rows if like and row.get("like") == like]
        needed = MARGIN * max([expected, *same])
        if time.monotonic() + needed > self.until:
            print(f"  {self.part}: no time for {name} ({needed:.0f} s)", file=sys.stderr, flush=True)
            return None
        begun = time.monotonic()
        try:
            values = measure()
        except Exception as error:  # the machine is lent: the other rows are wanted all the same
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        head = {"part": self.part, "row": name, "like": like, "row_seconds": time.monotonic() - begun}
        row = head | values | self.provenance
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        shown = {key: _short(value) for key, value in (head | values).items() if key not in HIDDEN}
        print(f"  {self.part}: {shown}", file=sys.stderr, flush=True)
        return None if "error" in row else row


def read(file: Path) -> list[Row]:
    """The rows there are. A line that was cut off by the end of the loan is no row."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def table(rows: list[Row], columns: Mapping[str, str]) -> str:
    """Markdown of the rows that have the first column; `columns` is key: format."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        if next(iter(columns)) in row and "error" not in row:
            cells = [
                format(row[key], form) if row.get(key) is not None else "-" for key, form in columns.items()
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Kit:
    """How a call runs its parts.

    Attributes:
        device: the GPU, or the CPU where there is none.
        tiny: everything in seconds and on a CPU, to see that it works; the numbers mean nothing.
        data: folder with cifar10-{train,test}.parquet.
        scratch: a folder that is deleted afterwards.
        out: one that is kept, and found again by the next call.
        seeds: of runs that are told to have some.
    """

    device: torch.device
    tiny: bool
    data: Path
    scratch: Path
    out: Path
    seeds: tuple[int, ...] = (0, 1, 2)

    def seconds(
        self, forms: Mapping[str, Callable[[], object]], *, calls: int, repeats: int
    ) -> dict[str, float]:
        """Seconds of one call of each form: medians over `repeats` turns of `calls` calls, after a warm-up turn.

        The forms take turns, so that a clock that rises or a neighbour who comes disturbs all alike.
        """
        if self.tiny:
            calls, repeats = 1, 2
        times: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(repeats + 1):
            for name, form in forms.items():
                taken = self._turn(form, calls) / calls
                if turn:
                    times[name].append(taken)
        return {name: statistics.median(taken) for name, taken in times.items()}

    def _turn(self, form: Callable[[], object], calls: int) -> float:
        """Seconds of some calls: between two events in the GPU's queue, or of the clock on a CPU."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            for _ in range(calls):
                form()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            form()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
