"""Tells of what this process waits for itself: nothing can interrupt a read that a file system does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

Item = TypeVar("Item")

LOOKS = 10
"""At what is waited for, within the time that it may take."""


def watched(items: Iterable[Item], seconds: float, tell: Callable[[], None]) -> Iterator[Item]:
    """The items, as they come; the time between them, in which others use them, does not count.

    Args:
        seconds: that one may take.
        tell: called where one takes longer, once for each, in a thread.
    """
    since: float | None = None
    over = threading.Event()

    def look() -> None:
        told = None
        while not over.wait(seconds / LOOKS):
            began = since
            if began is not None and began != told and monotonic() - began > seconds:
                told = began
                tell()

    threading.Thread(target=look, daemon=True, name="watchdog").start()
    iterator = iter(items)
    try:
        while True:
            since = monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                since = None
            yield item
    finally:
        over.set()
