"""Patience with a tracking server, database or disk that is away, locked or full for a while.

A trial takes hours and its metrics a hundredth of a second to write down: a server that restarts, a database
that another program locks or a disk that somebody is clearing must not cost the trial. So every call is
repeated for a while, which is said in one line; then the sweep ends in one line too, and can be resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from raytrain_speedup import retry
from raytrain_speedup.tracking.tracker import TrackingLost

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """Repeats calls while nothing answers, for `retry.PATIENCE_SECONDS` at most.

    Args:
        uri: what does not answer, for the line that says so.
        may_pass: whether an error may be another's at the next attempt.

    Attributes:
        lost: why a call was given up; every later call is tried once.
    """

    def __init__(self, uri: str, may_pass: Callable[[Exception], bool]) -> None:
        self.uri, self.may_pass = uri, may_pass
        self.lost: TrackingLost | None = None

    def __call__(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """The call's result.

        Raises:
            TrackingLost: if the call was given up.
        """
        seconds = 0.0 if self.lost is not None else retry.PATIENCE_SECONDS
        try:
            return retry.retry(
                partial(call, *args, **named), may_pass=self.may_pass, say=self._say, seconds=seconds
            )
        except Exception as error:
            if not self.may_pass(error):
                raise
            self.lost = self.lost or TrackingLost(self._last_words(error))
            raise self.lost from error

    def _say(self, error: Exception) -> None:
        # A live table on the screen lets lines for stderr through above itself.
        print(
            f"tracking at {self.uri} does not answer ({first_sentence(error)}); "
            f"trying again for up to {retry.PATIENCE_SECONDS:.0f} s",
            file=sys.stderr,
        )

    def _last_words(self, error: Exception) -> str:
        return (
            f"tracking at {self.uri} has not answered for {retry.PATIENCE_SECONDS:.0f} s "
            f"({first_sentence(error)}); expected a server or a database that can be written to, with space on its "
            "disk. What was written before is kept: go on with --resume"
        )


def first_sentence(error: Exception) -> str:
    """The first sentence of an error, which in MLflow's case may be a page and begin with SQLAlchemy's advice."""
    lines = [
        line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")
    ]
    return (lines or [type(error).__name__])[0].partition(". ")[0]
