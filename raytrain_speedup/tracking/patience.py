"""Patience with a tracking server or database that is away, locked or full for a while.

A trial takes hours and its metrics a hundredth of a second to write down: a server that restarts, a database
that another program locks or a disk that somebody is clearing must not cost the trial. So every call is
repeated for a while, which is said in one line; then the sweep ends in one line too, and can be resumed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

# MLflow itself asks a server that is not there seven times, for four minutes and without a word.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from raytrain_speedup.settings import RunFailed

PATIENCE_SECONDS = 120.0
"""How long one call is repeated."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
PASSING = {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's codes of what may pass: a database's operational errors, no answer, a server's own fault."""


class TrackingLost(RunFailed):
    """The tracking server or database did not come back in time."""


class PatientClient(MlflowClient):
    """An `MlflowClient` whose calls are repeated while nothing answers, for `PATIENCE_SECONDS` at most.

    Attributes:
        lost: why a call was given up; every later call is tried once.

    Raises:
        TrackingLost: by any call that was given up.
    """

    def __init__(self, tracking_uri: str) -> None:
        super().__init__(tracking_uri=tracking_uri)
        self.lost: TrackingLost | None = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found if name.startswith("_") or not callable(found) else partial(self._patiently, found)

    def _patiently(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        deadline, pause, told = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE, False
        while True:
            try:
                return call(*args, **named)
            except (MlflowException, OSError) as error:
                if not _may_pass(error):
                    raise
                if self.lost is not None or time.monotonic() + pause > deadline:
                    self.lost = self.lost or TrackingLost(self._last_words(error))
                    raise self.lost from error
                if not told:
                    # A live table on the screen lets lines for stderr through above itself.
                    print(
                        f"tracking at {self.tracking_uri} does not answer ({reason_of(error)}); "
                        f"trying again for up to {PATIENCE_SECONDS:.0f} s",
                        file=sys.stderr,
                    )
                told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _last_words(self, error: Exception) -> str:
        return (
            f"tracking at {self.tracking_uri} has not answered for {PATIENCE_SECONDS:.0f} s "
            f"({reason_of(error)}); expected a server or a database that can be written to, with space on its "
            "disk. What was written before is kept: go on with --resume"
        )


def reason_of(error: Exception) -> str:
    """The first sentence of an error, which in MLflow's case may be a page and begin with SQLAlchemy's advice."""
    lines = [
        line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")
    ]
    return (lines or [type(error).__name__])[0].partition(". ")[0]


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) or error.error_code in PASSING  # type: ignore[attr-defined]
