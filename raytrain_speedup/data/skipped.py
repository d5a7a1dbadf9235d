"""Samples that cannot be read: each is named in the log once, counted, and too many of them end the run."""

from __future__ import annotations

import logging

from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_NAMES = 5
_ENOUGH = 1000


class Skipped:
    """What one split has lost so far.

    Args:
        split: name of the split, for messages.
        size: number of its samples this process may meet.
        limit: fraction of unreadable samples above which `add` refuses.

    Attributes:
        names: the first few unreadable samples, with the reason.
    """

    def __init__(self, split: str, size: int, limit: float) -> None:
        self.split, self.size, self.limit = split, size, limit
        self.names: list[str] = []
        self._shown = 0
        self._known: set[int] = set()

    @property
    def count(self) -> int:
        """Number of different samples that could not be read."""
        return len(self._known)

    def saw(self, samples: int) -> None:
        """Note how many samples were asked for: the fraction is of those, once there are enough to judge."""
        self._shown += samples

    def add(self, error: CorruptSample) -> None:
        """Log a sample that was left out.

        Raises:
            UserError: if that is one too many.
        """
        if error.index in self._known:
            return
        self._known.add(error.index)
        self.names = [*self.names, str(error)][:_NAMES]
        log.warning("skipped an unreadable sample of data.%s: %s", self.split, error)
        met = min(self.size, max(self._shown, _ENOUGH))
        if self.count > self.limit * met:
            raise too_many(self.split, self.count, met, self.limit, self.names[0])


def too_many(split: str, count: int, met: int, limit: float, first: str) -> UserError:
    """That more samples of a split cannot be read than the fraction `limit` of those met."""
    return UserError(
        f"data.{split}: {count} of {met} samples cannot be read, more than data.max_corrupt_fraction={limit:g} "
        f"allows; the first: {first}"
    )
