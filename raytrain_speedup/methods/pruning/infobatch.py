"""InfoBatch: show fewer of the samples the model has learned well, and let the ones shown count for the rest.

Qin et al., ICLR 2024, https://arxiv.org/abs/2303.04947. The score of a sample is its last observed training
loss. At the start of an epoch every sample whose score lies strictly below the mean is eligible; a fraction r of
the eligible ones is dropped at random and the survivors' losses are multiplied by eligible / kept, so the
epoch's weighted sum of losses is an unbiased estimate of the sum over all data. The quantile form, for large
noisy sets, drops the more the lower the loss: .75 below the 20th percentile, .5 between the 20th and 85th.

A mean over a batch divides by the number of samples shown, not by the sum of their weights. Steps get fewer
and their gradients larger by the same factor, so learning rates follow progress and not a count of steps.

    pruner = InfoBatch(len(dataset), epochs=200, prune_ratio=0.5)
    for epoch in range(200):
        for index, weight in pruner.plan(epoch).batches(128):
            losses = ...                                        # (b,), one per sample
            pruner.observe(index, losses)
            (losses * weight).mean().backward()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.scheduled import MAX_DROP, ScheduledSettings
from raytrain_speedup.methods.pruning.scored import ScoredPruner, ScoreSettings
from raytrain_speedup.methods.pruning.selection import MAX_WEIGHT, Selection, drop_count, lowest, thin
from raytrain_speedup.methods.pruning.timetable import Timetable

MAX_ELIGIBLE = 0.85
"""A saving raises the threshold to this quantile of the scores at most, the paper's upper percentile."""


class InfoBatchSettings(ScheduledSettings, ScoreSettings):
    """InfoBatch (ICLR 2024): prune well-learned samples at random and rescale the rest, without bias."""

    method: Literal["infobatch"] = Field("infobatch", description="InfoBatch.")
    threshold: Literal["mean", "quantile"] = Field(
        "mean", description="Eligible are the samples below the mean score, or those below the quantiles."
    )
    quantiles: tuple[float, ...] = Field(
        (0.2, 0.85), min_length=1, description="For threshold: quantile: upper ends of the bands, rising."
    )
    keep: tuple[float, ...] = Field(
        (0.25, 0.5), min_length=1, description="For threshold: quantile: fraction of each band that is kept."
    )

    @classmethod
    def _needs_no_ratio(cls, data: Mapping[str, Any]) -> bool:
        return data.get("threshold") == "quantile" or super()._needs_no_ratio(data)

    def _check_amount(self) -> None:
        if self.threshold == "mean":
            super()._check_amount()
        elif self.prune_ratio is not None or self.saving is not None:
            raise ValueError(
                f"threshold: quantile drops by keep; expected neither prune_ratio ({self.prune_ratio}) "
                f"nor saving ({self.saving}) beside it (null them)"
            )

    @model_validator(mode="after")
    def _bands_are_in_order(self) -> Self:
        if len(self.quantiles) != len(self.keep):
            raise ValueError(f"quantiles {self.quantiles} and keep {self.keep} differ in length")
        if not all(a < b for a, b in zip((0.0, *self.quantiles), (*self.quantiles, 1.0), strict=True)):
            raise ValueError(f"quantiles {self.quantiles} must rise, between 0 and 1")
        if not all(1 / MAX_WEIGHT <= fraction <= 1 for fraction in self.keep):
            raise ValueError(
                f"keep {self.keep} must be fractions from {1 / MAX_WEIGHT:g}, where a survivor weighs "
                f"{MAX_WEIGHT:g}, to 1"
            )
        return self

    def promised_saving(self, timetable: Timetable) -> float | None:
        """See `ScheduledSettings.promised_saving`; the bands of the quantile form are known beforehand."""
        if self.threshold == "mean":
            return super().promised_saving(timetable)
        return timetable.reachable_saving(self.bands_dropped())

    def bands_dropped(self) -> float:
        """The fraction of all samples that the bands of the quantile form drop."""
        widths = np.diff((0.0, *self.quantiles))
        return float(widths @ (1 - np.array(self.keep)))

    def _pruner(self) -> type[InfoBatch]:
        return InfoBatch


def mean_threshold(values: NDArray[np.float32]) -> np.float32:
    """The mean of finite scores (n,), such that `values < mean_threshold(values)` is exact in float32.

    The float64 sum of up to 2^29 equal float32 values is exact, so equal scores are never below their mean.
    """
    return _rounded_up(float(values.sum(dtype=np.float64)) / len(values))


def quantile_thresholds(values: NDArray[np.float32], quantiles: Sequence[float]) -> list[np.float32]:
    """The quantiles of finite scores (n,), interpolated linearly, rounded like `mean_threshold`.

    One partition for each: NumPy has a vectorised form for a single place only, so for 14.2 million
    scores `np.quantile` takes .23 s and this .05 s.
    """
    ordered = values.copy()
    thresholds = []
    for quantile in quantiles:
        place = quantile * (len(values) - 1)
        below = int(place)
        ordered.partition(below)
        low, high = float(ordered[below]), float(ordered[below + 1 :].min(initial=np.inf))
        thresholds.append(_rounded_up(low + (place - below) * (high - low) if place > below else low))
    return thresholds


def _rounded_up(threshold: float) -> np.float32:
    """The least float32 that is not below `threshold`: no float32 lies between, so comparisons agree."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) >= threshold else np.nextafter(nearest, np.float32(np.inf))


class InfoBatch(ScoredPruner):
    """InfoBatch for one run; see the module for its use and `ScheduledPruner` for the arguments."""

    settings_class = InfoBatchSettings
    settings: InfoBatchSettings

    def _select(self, epoch: int) -> Selection:
        scores, usable, stats = self._usable_scores()
        finite = int(np.count_nonzero(usable))
        if finite == 0:
            return Selection(stats=stats)
        bands, threshold = self._bands(epoch, scores, usable)
        dropped = sum(drop for _, drop in bands)
        stats["threshold"] = threshold
        stats["eligible"] = sum(int(np.count_nonzero(eligible)) for eligible, _ in bands)
        stats["dropped"] = dropped
        droppable = dropped if self.settings.saving is None else _most_of(finite)
        survivors = draw.generator(self.seed, epoch, draw.SURVIVORS)
        return thin(bands, stats, survivors, droppable=droppable)

    def _bands(
        self, epoch: int, scores: NDArray[np.float32], usable: NDArray[np.bool_]
    ) -> tuple[list[tuple[NDArray[np.bool_], int]], float]:
        """The eligible samples (masks (N,)) with how many of them to drop, and the highest threshold."""
        values = scores if usable.all() else scores[usable]
        if self.settings.threshold == "quantile":
            thresholds = quantile_thresholds(values, self.settings.quantiles)
            return self._quantile_bands(scores, usable, thresholds), float(thresholds[-1])
        threshold = mean_threshold(values)
        eligible = (scores < threshold) & usable
        count = int(np.count_nonzero(eligible))
        if self.settings.saving is None:
            return [(eligible, drop_count(self.settings.prune_ratio or 0.0, count))], float(threshold)

        drop = self._drop_for_saving(epoch, self.settings.saving)
        if drop > int(MAX_DROP * count):
            wanted = min(math.ceil(drop / MAX_DROP), int(MAX_ELIGIBLE * len(values)))
            if wanted > count:
                count = wanted
                eligible, threshold = lowest(
                    scores, usable, count, draw.generator(self.seed, epoch, draw.TIES)
                )
        return [(eligible, min(drop, int(MAX_DROP * count)))], float(threshold)

    def _quantile_bands(
        self, scores: NDArray[np.float32], usable: NDArray[np.bool_], thresholds: Sequence[np.float32]
    ) -> list[tuple[NDArray[np.bool_], int]]:
        bands = []
        rest = usable.copy()
        for threshold, keep in zip(thresholds, self.settings.keep, strict=True):
            band = (scores < threshold) & rest
            rest &= ~band
            bands.append((band, drop_count(1 - keep, int(np.count_nonzero(band)))))
        return bands

    def _most_droppable(self) -> int:
        if self.settings.threshold == "quantile":
            return round(self.settings.bands_dropped() * self.num_samples)
        return _most_of(self.num_samples)


def _most_of(usable: int) -> int:
    """How many samples a saving can drop of those with a finite score."""
    return int(MAX_DROP * int(MAX_ELIGIBLE * usable))
