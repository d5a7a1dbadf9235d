"""Samples that cannot be read: each is named in the log once, counted, and too many of them end the run.

The test split is read once, when the whole budget is spent; what is wrong with it would be learnt then. So some
of it is decoded before anything is trained: all of a small split, and of a large one as many samples as show,
spread over it, whether it is far from readable. The exact count is left to the evaluation.
"""

from __future__ import annotations

import logging
import math

import numpy as np

from raytrain_speedup.data.base import CorruptSample, DataSettings, Source, Subset
from raytrain_speedup.data.decode import decode_all
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

_NAMES = 5
_ENOUGH = 1000  # samples by which a split is judged
_CHUNK = 250  # samples that the check before a run holds at a time


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


def check_readable(splits: Splits, settings: DataSettings) -> None:
    """Decode some of the validation and of the test split; texts were read whole when they were opened.

    Raises:
        UserError: if more of them cannot be read than `max_corrupt_fraction` allows; where not all are tried, more
            than three standard deviations of chance would explain.
    """
    if splits.inputs == "sequences":
        return
    for name, source in (("test", splits.test), ("val", splits.val)):
        tried = _spread(len(source))
        failed = _failures(source, tried, splits, settings)
        limit = settings.max_corrupt_fraction
        chance = 0.0 if len(tried) == len(source) else 3 * math.sqrt(len(tried) * limit * (1 - limit))
        if len(failed) > limit * len(tried) + chance:
            raise too_many(name, len(failed), len(tried), limit, failed[0])


def _spread(size: int) -> np.ndarray:
    """Positions over a whole split, in order; all of them where they are few."""
    return np.unique(np.linspace(0, size - 1, min(size, _ENOUGH)).astype(np.int64))


def _failures(source: Source, positions: np.ndarray, splits: Splits, settings: DataSettings) -> list[str]:
    """What is said of those of the samples that cannot be read."""
    failed = []
    for start in range(0, len(positions), _CHUNK):
        part = Subset(source, positions[start : start + _CHUNK])
        _, _, errors = decode_all(part, settings, splits.image_size, splits.channels, quiet=True, title="")
        failed += [str(error) for error in errors]
    return failed
