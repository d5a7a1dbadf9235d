"""Where a sweep stands while it runs: what is best so far, what was spent, and how long it may still take.

The best is read off the leaderboard, of the runs that matter to it: the evidence, and the best trial yet. So what
is shown on the way is what will be shown at the end, and a thousand trials are not compared anew after each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain_speedup.tracking.leaderboard import SEARCHED, Row, rows
from raytrain_speedup.tracking.run_log import seconds_of
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tuning.planned import TRIAL


class Standing:
    """Hears of every run of a sweep.

    Args:
        total: how many runs it has, at most.
        past: finished runs of earlier sittings.

    Attributes:
        best: the row that is ahead: proven, else not yet lossy, else the best trial; None before any.
        states: how many runs ended how.
    """

    def __init__(self, total: int, past: Sequence[Record] = ()) -> None:
        self.total = total
        self.best: Row | None = None
        self.states: Counter[str] = Counter()
        self._started = time.monotonic()
        self._evidence: list[Record] = []
        self._champion: Record | None = None
        self._seconds = 0.0
        self._running: dict[str, Mapping[str, Any]] = {}
        for record in past:
            self.end(record)
        self._before = len(past)

    def report(self, name: str, metrics: Mapping[str, Any]) -> None:
        """A run goes on."""
        self._running[name] = {**self._running.get(name, {}), **metrics}

    def end(self, record: Record) -> None:
        """A run has ended."""
        self._running.pop(record.name, None)
        self.states[record.state] += 1
        self._seconds += record.wall_seconds
        if record.finished:
            self._compare(record)

    @property
    def ended(self) -> int:
        return sum(self.states.values())

    @property
    def elapsed(self) -> float:
        """Seconds of this sitting."""
        return time.monotonic() - self._started

    @property
    def spent(self) -> float:
        """Wall seconds of all runs, one after the other."""
        return self._seconds + sum(seconds_of(metrics) for metrics in self._running.values())

    @property
    def left(self) -> float | None:
        """Seconds until the end, at most, at the pace of this sitting; None before there is one."""
        underway = sum(float(metrics.get("progress", 0.0)) for metrics in self._running.values())
        done = self.ended - self._before + underway
        return None if done <= 0 else self.elapsed / done * max(0.0, self.total - self.ended - underway)

    def _compare(self, record: Record) -> None:
        trials = [one for one in (self._champion, record) if one is not None and one.role == TRIAL]
        if record.role != TRIAL:
            self._evidence.append(record)
        found = rows([*self._evidence, *trials])
        by_id = {one.run_id: one for one in trials}
        self._champion = next((by_id[row.run_id] for row in found if row.run_id in by_id), self._champion)
        ahead = (row for row in found if row.role in SEARCHED and row.comparison and row.verdict != "lossy")
        self.best = next(ahead, None)
