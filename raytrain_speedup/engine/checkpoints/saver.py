"""Checkpoints are written while the training goes on.

A step waits until what is saved is copied in memory, and for the checkpoint before if that is still being written:
there is never more than one under way. How it went is told at the next chance: between two steps, before the next
checkpoint, or at the end of the run, which waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from raytrain_speedup.engine.cost.clock import no_work_of_the_run


class Saver:
    """What brings one checkpoint at a time to the storage, in a thread of its own."""

    def __init__(self) -> None:
        self._under_way: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin the next one; waits for the one before and raises what became of it."""
        self.settle()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way = thread.submit(self._beside, work)
        thread.shutdown(wait=False)  # it ends with its work; the process ends after it

    def check(self) -> None:
        """Raise what the last one failed with, if it is over."""
        if self._under_way is not None and self._under_way.done():
            self.settle()

    def settle(self) -> None:
        """Wait for the last one, and raise what it failed with, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def wait(self) -> None:
        """Wait for the last one, whatever becomes of it; `check` and `settle` still tell."""
        if self._under_way is not None:
            wait([self._under_way])

    def _beside(self, work: Callable[[], None]) -> None:
        with no_work_of_the_run():
            work()
