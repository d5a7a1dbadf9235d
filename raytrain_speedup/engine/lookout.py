"""Between two steps: is it time to save, and is the place where the run is about to be taken away?

All ranks save at the same step. The clock and the notice of rank 0 count; to hear of them costs messages (of 4 ms
among Ray Train's workers on a busy machine), so all ask after the same steps: rank 0 says, each time, how many to
take until the next, about two seconds' worth.
"""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

from raytrain_speedup.engine.reporter import Notice, Reporter

LOOK_SECONDS = 2.0
"""Between two looks. Ray Train's own watcher looks as often (`scaling/cluster.py`); the shortest notice, that of
Google Cloud, is of 30 s."""


class Look(NamedTuple):
    """What all ranks do now.

    Attributes:
        due: `train.checkpoint_minutes` have passed since the last checkpoint.
        notice: of a place that nothing was heard of before.
    """

    due: bool = False
    notice: Notice | None = None


class Lookout:
    """Looks for one rank; all ranks call `look` equally often.

    Args:
        reporter: knows of notices, and what rank 0 says.
        minutes: between checkpoints, or None.
    """

    def __init__(self, reporter: Reporter, minutes: float | None) -> None:
        self._reporter = reporter
        self._seconds = None if minutes is None else 60 * minutes
        self._saved_at = self._looked_at = monotonic()
        self._stride = self._left = 1  # steps between looks, and until the next
        self._known: set[str] = set()

    def saved(self) -> None:
        """A checkpoint was taken, for whatever reason."""
        self._saved_at = monotonic()

    def look(self) -> Look:
        """To be called after every step."""
        if self._seconds is None and not self._reporter.watches:
            return Look()
        self._left -= 1
        if self._left:
            return Look()
        now = monotonic()
        due = self._seconds is not None and now - self._saved_at >= self._seconds
        due, self._stride = self._reporter.agree((due, self._next_stride(now)))
        self._looked_at, self._left = now, self._stride
        return Look(due, self._news())

    def _next_stride(self, now: float) -> int:
        """No more than twice the last one: the first steps of a GPU are only queued, and seem to take no time."""
        pace = (now - self._looked_at) / self._stride
        return max(1, min(2 * self._stride, int(LOOK_SECONDS / max(pace, 1e-9))))

    def _news(self) -> Notice | None:
        notice = self._reporter.notice() if self._reporter.watches else None
        if notice is None or self._known.issuperset(notice.nodes):
            return None
        self._known.update(notice.nodes)
        return notice
