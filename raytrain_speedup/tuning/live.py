"""The sweep on the screen: a live table of its runs on a terminal, a line per ended run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raytrain_speedup.metric import spoken

ROWS_SHOWN = 18
COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red", "interrupted": "yellow"}


@dataclass
class _Row:
    state: str = "running"
    settings: str = ""
    reason: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


class SweepTable:
    """Shows the runs of a sweep.

    Args:
        console: where to draw.
        title: the sweep's name.
        total: how many runs it has, at most.
        done: how many of them an earlier run of the sweep has finished.
        quality: the metric to show beside the cost.
    """

    def __init__(self, console: Console, title: str, *, total: int, done: int = 0, quality: str) -> None:
        self.quality = quality
        self.unit = "" if quality.endswith("loss") else " %"
        self.console, self.title, self.total, self.done_before = console, title, total, done
        self.rows: dict[str, _Row] = {}
        self.started = time.monotonic()
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> SweepTable:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def __call__(
        self, name: str, state: str, metrics: Mapping[str, Any], reason: str = "", settings: str = ""
    ) -> None:
        row = self.rows.setdefault(name, _Row())
        row.state, row.reason = state, reason
        row.settings = settings or row.settings
        row.metrics.update(metrics)
        if state != "running":
            self.console.print(self._line(name, row))

    @property
    def ended(self) -> int:
        return self.done_before + sum(row.state != "running" for row in self.rows.values())

    def _line(self, name: str, row: _Row) -> Text:
        cells = [f"{self.ended:>3}/{self.total}", f"{name:<20}", row.settings, *self._metrics(row)]
        text = Text("  ".join(cell for cell in cells if cell))
        text.append(f"  {row.state}", style=COLOURS[row.state])
        return text.append(f": {row.reason}") if row.reason else text

    def _table(self) -> RenderableType:
        table = Table(
            title=self._heading(), title_justify="left", title_style="bold", box=None, padding=(0, 2)
        )
        for column in (
            "run",
            "settings",
            "progress",
            spoken(self.quality) + self.unit,
            "train s",
            "passes saved",
        ):
            table.add_column(column, justify="left" if column in ("run", "settings") else "right")
        running = {name: row for name, row in self.rows.items() if row.state == "running"}
        for name, row in list(running.items())[-ROWS_SHOWN:]:
            bar = ProgressBar(total=1.0, completed=row.metrics.get("progress", 0.0), width=16)
            table.add_row(name, row.settings, bar, *self._metrics(row, units=False))
        return table

    def _heading(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        failed = sum(row.state == "failed" for row in self.rows.values())
        text = f"{self.title}: {self.ended} of {self.total} runs in {minutes}:{seconds:02d}"
        return text + (f", {failed} failed" if failed else "")

    def _metrics(self, row: _Row, *, units: bool = True) -> list[str]:
        shown = {
            self.quality: ("{:.2f}", self.unit),
            "train_seconds": ("{:.1f}", " s"),
            "passes_saved": ("{:.0%}", " saved"),
        }
        return [
            form.format(row.metrics[key]) + (unit if units else "") if key in row.metrics else ""
            for key, (form, unit) in shown.items()
        ]
