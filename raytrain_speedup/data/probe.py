"""Whether the splits that are read last can be read at all, found out before anything is trained.

The test split is read once, when the whole budget is spent; what is wrong with it would be learnt then. So some
of it is decoded first: all of a small split, and of a large one as many samples as show, spread over it, whether
it is far from readable. The exact count is left to the evaluation.
"""

from __future__ import annotations

import math

import numpy as np

from raytrain_speedup.data.base import DataSettings, Source, Splits, Subset
from raytrain_speedup.data.device_loader import decode_all
from raytrain_speedup.data.skipped import too_many

_SAMPLES = 1000
_CHUNK = 250  # samples held at a time


def check_readable(splits: Splits, settings: DataSettings) -> None:
    """Decode some of the validation and of the test split.

    Raises:
        UserError: if more of them cannot be read than `max_corrupt_fraction` allows; where not all are tried, more
            than three standard deviations of chance would explain.
    """
    for name, source in (("test", splits.test), ("val", splits.val)):
        tried = _spread(len(source))
        failed = _failures(source, tried, splits, settings)
        limit = settings.max_corrupt_fraction
        chance = 0.0 if len(tried) == len(source) else 3 * math.sqrt(len(tried) * limit * (1 - limit))
        if len(failed) > limit * len(tried) + chance:
            raise too_many(name, len(failed), len(tried), limit, failed[0])


def _spread(size: int) -> np.ndarray:
    """Positions over a whole split, in order; all of them where they are few."""
    return np.unique(np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64))


def _failures(source: Source, positions: np.ndarray, splits: Splits, settings: DataSettings) -> list[str]:
    """What is said of those of the samples that cannot be read."""
    failed = []
    for start in range(0, len(positions), _CHUNK):
        part = Subset(source, positions[start : start + _CHUNK])
        _, _, errors = decode_all(part, settings, splits.image_size, splits.channels, quiet=True, title="")
        failed += [str(error) for error in errors]
    return failed
