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
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.scheduled import MAX_DROP, ScheduledPruner, ScheduledSettings
from raytrain_speedup.methods.pruning.selection import MAX_WEIGHT, Selection, drop_count, thin
from raytrain_speedup.methods.pruning.timetable import Timetable
from raytrain_speedup.settings import UserError

MAX_ELIGIBLE = 0.85
"""A saving raises the threshold to this quantile of the scores at most, the paper's upper percentile."""

UNSEEN, SHARED, FRESH = 0, 1, 2
"""What a worker knows of a sample's score: none yet; one that all workers know; one observed since."""


class InfoBatchSettings(ScheduledSettings):
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


def lowest(
    scores: NDArray[np.float32], usable: NDArray[np.bool_], count: int, random: np.random.Generator
) -> tuple[NDArray[np.bool_], np.float32]:
    """Mask (N,) of the `count` usable samples of the lowest scores, and the highest score among them.

    Ties for the last places are drawn at random: many samples of a trained network share the loss 0.
    """
    values = scores.copy() if usable.all() else scores[usable]
    values.partition(count - 1)
    last = values[count - 1]
    mask = (scores < last) & usable
    mask |= draw.draw((scores == last) & usable, count - int(np.count_nonzero(mask)), random)
    return mask, last


class InfoBatch(ScheduledPruner):
    """InfoBatch for one run; see the module for its use and `ScheduledPruner` for the arguments.

    Scores live where the losses are, so that observing waits for no device: with no `device` given, where the
    first losses are. With another one given, losses on a GPU and scores on the CPU, every step waits for them.

    Attributes:
        scores: (N,) float32 on the device, the last observed loss of each sample.
        seen: (N,) int8 on the device, `UNSEEN`, `SHARED` or `FRESH`.
    """

    settings_class = InfoBatchSettings
    settings: InfoBatchSettings

    def __init__(self, num_samples: int, epochs: int | Sequence[float], **options: Any) -> None:
        super().__init__(num_samples, epochs, **options)
        place = self.device or "cpu"
        self.scores = torch.zeros(self.num_samples, dtype=torch.float32, device=place)
        self.seen = torch.full((self.num_samples,), UNSEEN, dtype=torch.int8, device=place)

    @torch.no_grad()
    def observe(self, index: Tensor, loss: Tensor) -> None:
        """Note the raw losses of a batch; two kernels, no synchronisation, `loss` is left alone.

        Args:
            index: (b,) int64, positions in the data set. Of a position that occurs twice, one loss is kept
                (on a CPU the last one); a plan shows none twice.
            loss: (b,) of any floating type, unweighted.

        Raises:
            UserError: unless there is one loss for each index, and indices are int64.
        """
        if index.dtype != torch.int64:
            raise UserError(f"observe: index is {index.dtype}; expected torch.int64, as in the plan")
        if index.dim() != 1 or loss.shape != index.shape:
            raise UserError(
                f"observe: losses of shape {tuple(loss.shape)} for indices of shape {tuple(index.shape)}; "
                'expected one loss per sample, (b,) and (b,), as from a criterion with reduction="none"'
            )
        if self.device is None:
            self.device = loss.device
            self.scores, self.seen = self.scores.to(self.device), self.seen.to(self.device)
        # A copy to the CPU has to be waited for: the kernels below would read it before it is there.
        ahead = self.device.type != "cpu"
        index = index.to(self.device, non_blocking=ahead)
        loss = loss.to(self.device, torch.float32, non_blocking=ahead)
        self.scores.index_copy_(0, index, loss)
        self.seen.index_fill_(0, index, FRESH)

    @torch.no_grad()
    def exchange(self) -> None:
        """Share the scores observed since the last exchange: one all-reduce of 8 N bytes.

        A sample that several workers observed gets the mean of what they saw.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        home = self.scores.device
        fresh = self.seen == FRESH
        both = torch.zeros(2, self.num_samples, dtype=torch.float32, device=home)
        both[0].copy_(self.scores).masked_fill_(~fresh, 0)  # a product would spread NaN
        both[1].copy_(fresh)
        both = both.to(carried_on(home))
        dist.all_reduce(both)
        total, count = both.to(home)
        observed = count > 0
        torch.where(observed, total.div_(count), self.scores, out=self.scores)
        self.seen.clamp_(max=SHARED).masked_fill_(observed, SHARED)

    def _select(self, epoch: int) -> Selection:
        scores = self.scores.cpu().numpy()
        usable = self.seen.cpu().numpy() > UNSEEN
        seen = int(np.count_nonzero(usable))
        usable &= np.isfinite(scores)
        finite = int(np.count_nonzero(usable))
        stats: dict[str, float] = {"unobserved": self.num_samples - seen, "nonfinite": seen - finite}
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

    def state_dict(self) -> dict[str, Any]:
        """Scores and flags by sample, and the plan's state; alike on all workers after `exchange`."""
        state = super().state_dict()
        state["scores"] = self.scores.to("cpu", copy=True)
        state["seen"] = (self.seen > UNSEEN).cpu()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `ScheduledPruner.load_state_dict`."""
        super().load_state_dict(state)
        self.scores.copy_(state["scores"])
        self.seen.copy_(state["seen"])  # True is SHARED


def _most_of(usable: int) -> int:
    """How many samples a saving can drop of those with a finite score."""
    return int(MAX_DROP * int(MAX_ELIGIBLE * usable))


def carried_on(home: torch.device) -> torch.device:
    """Where the process group takes a tensor of `home`: there, or on this process's accelerator.

    A group of nccl alone refuses tensors of the CPU.
    """
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    return home if home.type in kinds else torch.device(kinds[0])
