"""The sweep on the screen: a live table of its runs on a terminal, lines elsewhere.

Both say the same: how far each run is, what is best so far and how sure that is, what was spent, how long it may
take, and of every run that ended, or begins again, how and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raytrain_speedup.metric import Metric
from raytrain_speedup.tracking.outcome import row_in_words
from raytrain_speedup.tuning.standing import Standing

ROWS_SHOWN = 18
COLOURS = {
    "finished": "green",
    "failed": "red",
    **dict.fromkeys(("stopped", "interrupted", "waiting", "restarted", "warning"), "yellow"),
}
NEWS = ("restarted", "warning")
"""Of a run that runs on."""
LOG_SECONDS = 60.0
"""Between two lines that say how far everything is, where there is no terminal."""


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
        standing: of the sweep; it is told of the runs under way here, and of those that ended by who records them.
        quality: the metric to show beside the cost, by the name that runs report it under.
    """

    def __init__(self, console: Console, title: str, *, standing: Standing, quality: Metric) -> None:
        self.quality = quality
        self.console, self.title, self.standing = console, title, standing
        self.rows: dict[str, _Row] = {}
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=4, transient=True)
        self._said_at, self._best_said = time.monotonic(), ""

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
        if state in NEWS:
            self.console.print(self._line(name, replace(row, state=state, reason=reason)))
            return
        row.state, row.reason = state, reason
        row.settings = settings or row.settings
        row.metrics.update(metrics)
        if state == "running":
            self.standing.report(name, metrics)
        else:
            self.console.print(self._line(name, row))
        if not self.console.is_terminal:
            self._log()

    def _log(self) -> None:
        """What the table would show, where there is none: the best when it is another, all of it now and then."""
        if (best := self._best()) != self._best_said:
            self._best_said = best
            self._print(best)
        if time.monotonic() - self._said_at >= LOG_SECONDS:
            self._said_at = time.monotonic()
            self._print(f"{self._heading()}; {self._effort()}")
            for name, row in self._running():
                progress = f"{row.metrics.get('progress', 0.0):.0%}"
                self._print(
                    "  ".join(filter(None, ("   ", name, row.settings, progress, *self._metrics(row))))
                )

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _line(self, name: str, row: _Row) -> Text:
        done = f"{self.standing.ended:>3}/{self.standing.total}"
        text = Text("  ".join(filter(None, (done, f"{name:<20}", row.settings, *self._metrics(row)))))
        text.append(f"  {row.state}", style=COLOURS[row.state])
        return text.append(f": {row.reason}") if row.reason else text

    def _table(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2), pad_edge=False)
        quality = " ".join(filter(None, (self.quality.spoken, self.quality.unit)))
        heads = ("run", "settings", "progress", quality, "train s", "passes saved")
        for column in heads:
            table.add_column(column, justify="left" if column in ("run", "settings") else "right")
        for name, row in self._running()[-ROWS_SHOWN:]:
            bar = ProgressBar(total=1.0, completed=row.metrics.get("progress", 0.0), width=16)
            table.add_row(name, row.settings, bar, *self._metrics(row, units=False))
        head = [Text(self._heading(), style="bold"), Text(self._effort())]
        return Group(*head, *([Text(best)] if (best := self._best()) else []), table)

    def _running(self) -> list[tuple[str, _Row]]:
        return [(name, row) for name, row in self.rows.items() if row.state == "running"]

    def _heading(self) -> str:
        standing = self.standing
        text = f"{self.title}: {standing.ended} of {standing.total} runs in {_clock(standing.elapsed)}"
        others = [
            f"{standing.states[state]} {state}" for state in ("stopped", "failed") if standing.states[state]
        ]
        return ", ".join([text, *others])

    def _effort(self) -> str:
        left = "" if self.standing.left is None else f", at most {_clock(self.standing.left)} to go"
        return f"spent {_clock(self.standing.spent)} of run time{left}"

    def _best(self) -> str:
        row = self.standing.best
        return "" if row is None else f"best so far: {row_in_words(row)}"

    def _metrics(self, row: _Row, *, units: bool = True) -> list[str]:
        shown: dict[str, tuple[Callable[[float], str], str]] = {
            self.quality.name: (self.quality.text, self.quality.unit),
            "train_seconds": ("{:.1f}".format, "s"),
            "passes_saved": ("{:.0%}".format, "saved"),
        }
        return [
            f"{text(row.metrics[key])} {unit if units else ''}".rstrip() if key in row.metrics else ""
            for key, (text, unit) in shown.items()
        ]


def _clock(seconds: float) -> str:
    """As `4:05`, or `1:04:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
