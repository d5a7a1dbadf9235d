"""The one loop that tries again: for storages, tracking servers and databases that are away for a while.

Shared file systems, object stores and servers fail for seconds or a minute (one restarts, a network is cut, a
token is renewed), and a run of hours should not end by that. What will not mend is told at once. Which errors may
pass is known to who calls: `engine/checkpoints/outage.py` for storages, `tracking/patience.py` for trackers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long one call is repeated."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0


def retry(
    call: Callable[[], T],
    *,
    may_pass: Callable[[Exception], bool],
    say: Callable[[Exception], None],
    seconds: float,
) -> T:
    """The result of a call, tried again while it raises what may pass.

    Args:
        call: may be repeated.
        may_pass: whether an error may not come again at the next attempt.
        say: is told the first error that is waited for.
        seconds: after them an error is the caller's; 0 tries once.

    Raises:
        Exception: the call's last error.
    """
    deadline, pause, said = time.monotonic() + seconds, FIRST_PAUSE, False
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error) or time.monotonic() + pause > deadline:
                raise
            if not said:
                say(error)
            said = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
