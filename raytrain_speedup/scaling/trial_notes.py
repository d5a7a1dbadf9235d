"""What the worker groups of a sweep's trials say, on its one board: each note under the name of its run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from raytrain_speedup.scaling.restarts import Restarts

NOTES_SECONDS = 1.0
"""Between two looks at the board."""

KEPT = ("begin", "progress", "checkpoint", "failure", "warning")
"""Notes whose content matters here; metrics and images reach Tune another way, or nobody."""


class BoardOfRun:
    """Stands for a `Board` where a run's workers pin; theirs is one of several runs.

    Args:
        board: of the sweep.
        run: its name.
    """

    def __init__(self, board: Any, run: str) -> None:
        self._board, self._run = board, run

    @property
    def put(self) -> BoardOfRun:
        """As an actor's method is called: `put.remote(kind, metrics)`."""
        return self

    @property
    def asked_to_stop(self) -> Any:
        """Of the sweep's board: its user ends the sweep, and no run of it."""
        return self._board.asked_to_stop

    def remote(self, kind: str, metrics: dict[str, Any]) -> Any:
        return self._board.put.remote(kind, {**(metrics if kind in KEPT else {}), "run": self._run})


class TrialNotes:
    """Tells of restarts and warnings, from the process of the sweep.

    Args:
        board: of the sweep.
        tell: is given the run's name, "restarted" or "warning", and the line.
    """

    def __init__(self, board: Any, tell: Callable[[str, str, str], None]) -> None:
        self._board, self._tell = board, tell
        self._restarts: dict[str, Restarts] = defaultdict(Restarts)
        self._looked = 0.0

    def pass_on(self, *, now: bool = False) -> None:
        """Look at the board, where the last look was a second ago, or now. One that does not answer is let be."""
        if not now and time.monotonic() - self._looked < NOTES_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            notes = ray.get(self._board.take.remote(), timeout=NOTES_SECONDS)
        except RayError:  # what it was told meanwhile comes later, or is lost with it; no run waits for that
            return
        for kind, metrics in notes:
            run = metrics["run"]
            if line := self._restarts[run].note(kind, metrics):
                self._tell(run, "restarted", line)
            if kind == "warning":
                self._tell(run, "warning", metrics["text"])

    def forget(self, run: str) -> None:
        """Tune begins the run's trial again, and has said why."""
        self._restarts.pop(run, None)
