"""What a user is told when the workers of a run are started again: why, from where they went on, what was lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

REMEMBERED = 20_000
"""Places that are remembered: an hour of steps at the rate of the board's notes."""


class Place(NamedTuple):
    """How far a run had come, and when that was heard."""

    steps: int
    seconds: float


class Restarts:
    """Follows the notes that workers pin to the board.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: deque[Place] = deque(maxlen=REMEMBERED)  # of this attempt, growing
        self._saved: dict[str | None, int] = {}  # steps, by checkpoint
        self._begun: str | None = None  # the checkpoint that this attempt went on from
        self._cause: str | None = None
        self._heard: float | None = None  # when anything was last heard of a worker that trained

    def note(self, kind: str, metrics: Mapping[str, Any]) -> str | None:
        """A note of the board; gives the line for the user if it says that workers began anew.

        Args:
            kind: `begin` with the name of the `checkpoint`, or None; `progress` with the run's `steps`;
                `checkpoint` with its `name` and `steps`; `failure` with its `cause`. Others say nothing here.
        """
        if kind == "failure":
            if (
                self._cause is None or "failed:" in self._cause
            ):  # of a death the others' errors are a consequence
                self._cause = metrics["cause"]
        elif kind == "begin":
            return self._begin(metrics["checkpoint"])
        elif kind == "progress" and "steps" in metrics and metrics.get("of") != "teacher":
            self._heard = self._clock()
            if not self._places:  # the first step after it
                self._saved.setdefault(self._begun, metrics["steps"] - 1)
            self._places.append(Place(metrics["steps"], self._heard))
        elif kind == "checkpoint" and metrics["steps"] is not None:
            self._heard = self._clock()
            self._saved[metrics["name"]] = metrics["steps"]
            # It was written beside later steps, which may have been heard of.
            if not self._places or metrics["steps"] > self._places[-1].steps:
                self._places.append(Place(metrics["steps"], self._heard))
        return None

    def _begin(self, checkpoint: str | None) -> str | None:
        """Workers begin, the first ones or new ones."""
        before, heard, cause = list(self._places), self._heard, self._cause
        self._places.clear()
        self._begun, self._heard, self._cause = checkpoint, None, None
        if heard is None and cause is None:
            return None
        came = f"went on from {checkpoint}" if checkpoint else "began again, for there was no checkpoint"
        cause = cause or "another number of workers"
        if heard is None or not before or checkpoint not in self._saved:
            return f"{cause}: the workers {came}"
        kept = self._saved[checkpoint]
        since = next((place.seconds for place in reversed(before) if place.steps <= kept), before[0].seconds)
        lost = max(before[-1].steps - kept, 0)
        seconds = before[-1].seconds - since if lost else 0.0
        steps = f"{lost} step{'' if lost == 1 else 's'} ({seconds:.1f} s) lost"
        return f"{cause}: {self._clock() - heard:.0f} s later the workers {came}; {steps}"
