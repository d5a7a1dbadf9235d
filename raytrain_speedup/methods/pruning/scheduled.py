"""What every dropping method shares: which epochs are pruned, by how much, and how that is remembered.

An epoch is pruned if it lies after the warm-up and ends within the first `anneal_from` of the progress; the
rest of the run shows all data at weight 1 (the annealing of the paper). How much is dropped is said either by
`prune_ratio`, a share of the samples that *may* be dropped, or by `saving`, the share of all sample passes of
the run that is to be saved. Only the second is what a user pays for: a nominal ratio of .7 saves about 28 %
under InfoBatch, since only samples below the mean loss may be dropped.

A saving is met by feedback: every pruned epoch drops what is still missing, spread evenly over the pruned
epochs that are left, so one epoch's shortfall is made up by the following ones.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner, PrunerSettings, equal_epochs
from raytrain_speedup.settings import UserError, explain

MAX_DROP = 0.75
"""Most a saving may drop of the eligible samples: survivors weigh 4 at most, the paper's strongest band."""

_TOLERANCE = 1e-9  # of progress: epoch ends are sums of rounded steps


class ScheduledSettings(PrunerSettings):
    """How much is dropped, and in which part of the run."""

    prune_ratio: float | None = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the eligible samples that a pruned epoch drops (the paper's r).",
    )
    saving: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Instead of prune_ratio: share of all sample passes of the run to save, warm-up and "
        "annealing included. Refused before the run if it is out of reach.",
    )
    anneal_from: float = Field(
        0.875, ge=0, le=1, description="Progress from which on all data is shown (the paper's delta)."
    )
    warmup_epochs: int = Field(1, ge=1, description="Epochs at the start that show all data.")

    @model_validator(mode="before")
    @classmethod
    def _drop_the_default_ratio(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "prune_ratio" not in data and cls._needs_no_ratio(data):
            return {**data, "prune_ratio": None}
        return data

    @classmethod
    def _needs_no_ratio(cls, data: Mapping[str, Any]) -> bool:
        return data.get("saving") is not None

    @model_validator(mode="after")
    def _amount_is_said_once(self) -> Self:
        self._check_amount()
        return self

    def _check_amount(self) -> None:
        if self.prune_ratio is not None and self.saving is not None:
            raise ValueError(
                f"prune_ratio ({self.prune_ratio}) and saving ({self.saving}) exclude one another; "
                "expected one of them (or prune_ratio: null beside saving)"
            )
        if self.prune_ratio is None and self.saving is None:
            raise ValueError("prune_ratio and saving are both null; expected one of them")

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        last_epoch_share: float = 1.0,
    ) -> ScheduledPruner:
        """See `PrunerSettings.build`."""
        return self._pruner()(
            num_samples,
            epoch_ends,
            seed=seed,
            device=device,
            last_epoch_share=last_epoch_share,
            **self.model_dump(),
        )

    def _pruner(self) -> type[ScheduledPruner]:
        """The method's pruner."""
        raise NotImplementedError


@dataclass(frozen=True)
class Timetable:
    """Which epochs are pruned, and how many sample passes a run has.

    Attributes:
        shares: (epochs,) share of each epoch's plan that is shown: 1, but perhaps for the last.
        pruned: (epochs,) whether the epoch may drop samples.
    """

    shares: tuple[float, ...]
    pruned: tuple[bool, ...]

    @classmethod
    def of(
        cls, epoch_ends: Sequence[float], warmup_epochs: int, anneal_from: float, last_epoch_share: float
    ) -> Timetable:
        """Read it off the ends of the epochs, in progress."""
        shares = (1.0,) * (len(epoch_ends) - 1) + (last_epoch_share,)
        latest = anneal_from + _TOLERANCE
        return cls(shares, tuple(e >= warmup_epochs and end <= latest for e, end in enumerate(epoch_ends)))

    def pruned_passes(self, first: int = 0) -> float:
        """Length of the pruned epochs from `first` on, in passes over the data."""
        return sum(
            share for share, pruned in zip(self.shares[first:], self.pruned[first:], strict=True) if pruned
        )

    def reachable_saving(self, most: float) -> float:
        """The largest saving over the run if a pruned epoch drops at most the share `most` of all samples."""
        return most * self.pruned_passes() / sum(self.shares)

    def drop_share(self, epoch: int, saving: float, dropped: Sequence[float]) -> float:
        """Share of all samples that `epoch` must drop to stay on course for `saving`.

        Args:
            epoch: a pruned epoch.
            saving: share of the run's sample passes to be saved.
            dropped: share of the samples each earlier epoch dropped.
        """
        saved = math.fsum(
            share * drop for share, drop in zip(self.shares[:epoch], dropped[:epoch], strict=True)
        )
        return max(0.0, (saving * sum(self.shares) - saved) / self.pruned_passes(epoch))


@dataclass(frozen=True)
class Selection:
    """What a pruned epoch shows.

    Attributes:
        codes: (N,) uint8 as in `draw.lay_out`; None for all samples at weight 1.
        weights: the weight of each code.
        stats: figures for the log.
    """

    codes: NDArray[np.uint8] | None = None
    weights: tuple[float, ...] = (0.0, 1.0)
    stats: Mapping[str, float] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """How many samples are not shown."""
        return 0 if self.codes is None else len(self.codes) - int(np.count_nonzero(self.codes))


def thin(
    bands: Sequence[tuple[NDArray[np.bool_], int]], stats: Mapping[str, float], random: np.random.Generator
) -> Selection:
    """Drop an exact number of samples of each band at random; the survivors stand for the whole band.

    Args:
        bands: disjoint masks (N,) of eligible samples, and how many of each are dropped (never all of them).
        stats: handed through.
        random: the generator of the survivors.

    A survivor of E eligible samples of which K are kept weighs E / K, the realised ratio. K * (E / K) = E, so
    the weights of the plan sum to N; each eligible sample is kept with probability K / E, so the weighted sum
    over the plan is an exactly unbiased estimate of the sum over the data. Weights are rounded once, to
    float32: a relative error of at most 2^-24.
    """
    codes = np.full(len(bands[0][0]), draw.FULL, dtype=np.uint8)
    weights = [0.0, 1.0]
    for eligible, drop in bands:
        count = int(np.count_nonzero(eligible))
        band = np.uint8(len(weights) - draw.FULL)
        codes += eligible * band  # `codes[eligible] = ...` would take several times as long
        codes *= ~draw.draw(eligible, drop, random)
        weights.append(count / (count - drop) if drop else 1.0)
    return Selection(codes, tuple(weights), stats)


def drop_count(ratio: float, eligible: int) -> int:
    """How many of `eligible` samples a ratio drops: the nearest number, but never all of them."""
    return min(round(ratio * eligible), max(eligible - 1, 0))


class ScheduledPruner(Pruner):
    """A pruner that drops samples in the middle of the run; subclasses say which ones, by `_select`.

    Args:
        num_samples: N, the size of the data set.
        epochs: how many epochs of equal length the run has, or the progress at which each one ends.
        seed: see `Pruner`; so are device and last_epoch_share.
        settings: fields of the method's settings class, such as `prune_ratio=0.5`.

    Raises:
        UserError: if a setting is wrong, or the requested saving out of reach on these epochs.
    """

    settings_class: ClassVar[type[ScheduledSettings]]

    def __init__(
        self,
        num_samples: int,
        epochs: int | Sequence[float],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        last_epoch_share: float = 1.0,
        **settings: Any,
    ) -> None:
        self.settings = self._read(settings)
        self.num_samples = num_samples
        self.epoch_ends = equal_epochs(epochs) if isinstance(epochs, int) else epochs
        self.seed = seed
        self.device = torch.device(device)
        self.timetable = Timetable.of(
            self.epoch_ends, self.settings.warmup_epochs, self.settings.anneal_from, last_epoch_share
        )
        self._dropped = torch.zeros(len(self.epoch_ends), dtype=torch.int64)  # samples, by epoch
        self._epoch: int | None = None  # the one that `_selection` is of
        self._selection = Selection()
        self._refuse_if_out_of_reach()

    def _read(self, settings: Mapping[str, Any]) -> ScheduledSettings:
        try:
            return self.settings_class(**settings)
        except ValidationError as error:
            raise explain(error, self.settings_class, where=type(self).__name__) from None

    @abstractmethod
    def _select(self, epoch: int) -> Selection:
        """What `epoch`, which may drop samples, shows."""

    @abstractmethod
    def _most_droppable(self) -> int:
        """How many samples an epoch can surely drop when a saving asks for it."""

    def plan(self, epoch: int) -> EpochPlan:
        """See `Pruner.plan`."""
        if epoch != self._epoch:
            self._selection = self._select(epoch) if self.timetable.pruned[epoch] else Selection()
            self._dropped[epoch] = self._selection.dropped
            self._epoch = epoch
        shown = self._selection
        order = draw.generator(self.seed, epoch, draw.ORDER)
        return draw.lay_out(self.num_samples, shown.codes, shown.weights, order, shown.stats)

    def _drop_for_saving(self, epoch: int, saving: float) -> int:
        """How many samples `epoch` must drop to stay on course for `saving`."""
        dropped = (self._dropped[:epoch] / self.num_samples).tolist()
        return round(self.timetable.drop_share(epoch, saving, dropped) * self.num_samples)

    def _refuse_if_out_of_reach(self) -> None:
        saving = self.settings.saving
        reachable = self.timetable.reachable_saving(self._most_droppable() / self.num_samples)
        if saving is not None and saving > reachable + _TOLERANCE:
            raise UserError(
                f"pruning.saving: {saving} is out of reach; expected at most "
                f"{math.floor(reachable * 1e4) / 1e4}, as {sum(self.timetable.pruned)} of the "
                f"{len(self.epoch_ends)} epochs may be pruned (after warmup_epochs, ended before anneal_from)"
            )

    def state_dict(self) -> dict[str, Any]:
        """What the current epoch shows, and how much each epoch dropped."""
        codes = self._selection.codes
        return {
            "num_samples": self.num_samples,
            "dropped": self._dropped.clone(),
            "epoch": self._epoch,
            "codes": None if codes is None else torch.from_numpy(codes.copy()),
            "weights": list(self._selection.weights),
            "stats": dict(self._selection.stats),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`, whatever number of workers wrote it.

        Raises:
            UserError: if it is the state of another data set or another method.
        """
        mine = self.state_dict().keys()
        if state.keys() != mine:
            raise UserError(
                f"pruning: the checkpoint holds another method's state ({', '.join(state) or 'empty'}); "
                f"expected {', '.join(mine)}"
            )
        if state["num_samples"] != self.num_samples:
            raise UserError(
                f"pruning: the checkpoint is of a data set of {state['num_samples']} samples; "
                f"expected {self.num_samples}"
            )
        if len(state["dropped"]) != len(self.epoch_ends):
            raise UserError(
                f"pruning: the checkpoint is of a run of {len(state['dropped'])} epochs; "
                f"expected {len(self.epoch_ends)}"
            )
        self._dropped = state["dropped"].clone()
        self._epoch = state["epoch"]
        codes = None if state["codes"] is None else state["codes"].cpu().numpy().copy()
        self._selection = Selection(codes, tuple(state["weights"]), dict(state["stats"]))
