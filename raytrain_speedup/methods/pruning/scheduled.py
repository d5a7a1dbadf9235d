"""What every dropping method shares: which epochs are pruned, by how much, and how that is remembered.

An epoch is pruned if it lies between `prune_from` and `anneal_from` of the progress, but the first one never is;
the rest of the run shows all data at weight 1 (the annealing of the paper). How much is dropped is said either
by `prune_ratio`, a fraction of the samples that *may* be dropped, or by `saving`, that of all sample passes of
the run that is to be saved. Only the second is what a user pays for: a nominal ratio of .7 saves about 28 %
under InfoBatch, since only samples below the mean loss may be dropped.

A saving that is out of reach is refused before the run. One that gets out of reach because losses are missing
(nobody called `observe`, or they are NaN) is reported in the log as soon as that is known.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from pydantic import Field, ValidationError, model_validator

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.base import TOLERANCE, EpochPlan, Pruner, PrunerSettings
from raytrain_speedup.methods.pruning.selection import MAX_WEIGHT, Selection
from raytrain_speedup.methods.pruning.timetable import Timetable
from raytrain_speedup.settings import UserError, explain

log = logging.getLogger("raytrain_speedup.pruning")

MAX_DROP = 0.75
"""Most a saving may drop of the eligible samples: survivors weigh 4 at most, the paper's strongest band."""

NOTABLE = 0.01
"""A saving that is missed by less than a point is not worth a warning."""


class ScheduledSettings(PrunerSettings):
    """How much is dropped, and in which part of the run."""

    from_the_start: ClassVar[bool] = False
    """Whether the first epoch may be pruned too, when no loss is known yet."""

    prune_ratio: float | None = Field(
        0.5,
        ge=0,
        lt=1,
        description="Fraction of the eligible samples that a pruned epoch drops (the paper's r), at most .9.",
    )
    saving: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Instead of prune_ratio: fraction of all sample passes of the run to save, warm-up and "
        "annealing included. Refused before the run if it is out of reach.",
    )
    anneal_from: float = Field(
        0.875, ge=0, le=1, description="Progress from which on all data is shown (the paper's delta)."
    )
    prune_from: float = Field(
        0.0, ge=0, le=1, description="Progress up to which all data is shown, and in the first epoch anyway."
    )

    @model_validator(mode="before")
    @classmethod
    def _warm_up_is_a_progress(cls, data: Any) -> Any:
        """Experiments used to count the warm-up in epochs, 1 by default, which depend on the budget."""
        if not isinstance(data, Mapping) or "warmup_epochs" not in data:
            return data
        if data["warmup_epochs"] != 1:
            raise ValueError(
                f"warmup_epochs: {data['warmup_epochs']!r} is said in progress now; expected prune_from: "
                f"{data['warmup_epochs']} / (epochs of the run)"
            )
        return {key: value for key, value in data.items() if key != "warmup_epochs"}

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
        if self.rescale == "exact" and (self.prune_ratio or 0) > 1 - 1 / MAX_WEIGHT:
            raise ValueError(
                f"prune_ratio: {self.prune_ratio} is not allowed; expected at most {1 - 1 / MAX_WEIGHT:g}, "
                f"where a survivor weighs {MAX_WEIGHT:g}"
            )

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        if self.prune_from > self.anneal_from:
            raise ValueError(
                f"prune_from: {self.prune_from} is not allowed; expected at most anneal_from ({self.anneal_from})"
            )
        return self

    def promised_saving(self, timetable: Timetable) -> float | None:
        """The fraction of the run's sample passes that these settings save, if they say so at all."""
        return self.saving

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str | None = None,
        last_epoch_fraction: float = 1.0,
    ) -> ScheduledPruner:
        """See `PrunerSettings.build`."""
        return self._pruner()(
            num_samples,
            epoch_ends,
            seed=seed,
            device=device,
            last_epoch_fraction=last_epoch_fraction,
            **self.model_dump(),
        )

    def _pruner(self) -> type[ScheduledPruner]:
        """The method's pruner."""
        raise NotImplementedError


class ScheduledPruner(Pruner):
    """A pruner that drops samples in the middle of the run; subclasses say which ones, by `_select`.

    Args:
        num_samples: N, the size of the data set.
        epochs: how many epochs of equal length the run has, or the progress at which each one ends.
        seed: see `Pruner`.
        device, last_epoch_fraction: see `PrunerSettings.build`.
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
        device: torch.device | str | None = None,
        last_epoch_fraction: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_samples, epochs, seed=seed)
        self.settings = self._read(settings)
        self.device = None if device is None else torch.device(device)
        self.timetable = self._timetable(last_epoch_fraction)
        self._dropped = torch.zeros(len(self.epoch_ends), dtype=torch.int64)  # samples, by epoch
        self._epoch: int | None = None  # the one that `_selection` is of
        self._selection = Selection()
        self._told = False  # that the saving is out of reach
        self._refuse_if_out_of_reach()

    def _read(self, settings: Mapping[str, Any]) -> ScheduledSettings:
        try:
            return self.settings_class(**settings)
        except ValidationError as error:
            raise explain(error, self.settings_class, where=type(self).__name__) from None

    def _timetable(self, last_epoch_fraction: float) -> Timetable:
        """Which epochs drop samples."""
        how = self.settings
        return Timetable.of(
            self.epoch_ends,
            how.prune_from,
            how.anneal_from,
            last_epoch_fraction,
            from_the_start=how.from_the_start,
        )

    @abstractmethod
    def _select(self, epoch: int) -> Selection:
        """What `epoch`, which may drop samples, shows."""

    @abstractmethod
    def _most_droppable(self) -> int:
        """How many samples an epoch can surely drop when a saving asks for it."""

    def _plan(self, epoch: int) -> EpochPlan:
        if epoch != self._epoch:
            pruned = self.timetable.pruned[epoch]
            self._selection = self._select(epoch) if pruned else Selection()
            self._dropped[epoch] = self._selection.dropped
            self._epoch = epoch
            if pruned:
                self._tell_what_is_missed(epoch)
        shown = self._selection
        order = draw.generator(self.seed, epoch, draw.ORDER)
        plan = draw.shuffled_plan(self.num_samples, shown.codes, shown.weights, order, shown.stats)
        return replace(plan, rescale=self.settings.rescale)

    def _drop_for_saving(self, epoch: int, saving: float) -> int:
        """How many samples `epoch` must drop to stay on course for `saving`."""
        return round(self.timetable.drop_fraction(saving, self._fractions_dropped(epoch)) * self.num_samples)

    def _fractions_dropped(self, epochs: int) -> list[float]:
        """The fraction of all samples that each of the first epochs dropped."""
        fractions: list[float] = (self._dropped[:epochs] / self.num_samples).tolist()
        return fractions

    def _refuse_if_out_of_reach(self) -> None:
        saving = self.settings.saving
        reachable = self.timetable.reachable_saving(self._most_droppable() / self.num_samples)
        if saving is not None and saving > reachable + TOLERANCE:
            raise UserError(
                f"pruning.saving: {saving} is out of reach; expected at most "
                f"{math.floor(reachable * 1e4) / 1e4}, as {sum(self.timetable.pruned)} of the "
                f"{len(self.epoch_ends)} epochs may be pruned ({self._which_may_be_pruned()})"
            )

    def _which_may_be_pruned(self) -> str:
        where = "from prune_from to anneal_from"
        return where if self.settings.from_the_start else f"all but the first, {where}"

    def _tell_what_is_missed(self, epoch: int) -> None:
        """Log that the promised saving is out of reach when that is first known, and what came of it at the end.

        It is known once it would be missed with losses that stay as they are: a run that never observes any is
        warned in its first pruned epoch, not when it is too late to mend.
        """
        promised = self.settings.promised_saving(self.timetable)
        last = not any(self.timetable.pruned[epoch + 1 :])
        if (self._told and not last) or not _speaks():
            return
        dropped = self._fractions_dropped(epoch + 1)
        likely, best = (
            self.timetable.reachable_saving(most / self.num_samples, dropped)
            for most in (self._selection.droppable, self._most_droppable())
        )
        if promised is None and self.settings.prune_ratio and self._selection.codes is None:
            log.warning("pruning: nothing can be dropped in epoch %d%s", epoch, self._missing())
        elif promised is None or likely >= promised - NOTABLE:
            return
        elif last:
            log.warning(
                "pruning: a saving of %.3f was asked for, the run reaches %.3f%s",
                promised,
                best,
                self._missing(),
            )
        else:
            log.warning(
                "pruning: a saving of %.3f was asked for; in epoch %d of %d, %.3f can be reached if the losses "
                "stay as they are, and %.3f at most%s",
                promised,
                epoch,
                len(self.epoch_ends),
                likely,
                min(best, promised),
                self._missing(),
            )
        self._told = True

    def _missing(self) -> str:
        """How many samples have no loss to judge them by, as the end of a message."""
        unobserved, nonfinite = (self._selection.stats.get(name, 0) for name in ("unobserved", "nonfinite"))
        reasons = [
            f"{unobserved} have no loss (does every step call `observe`?)" if unobserved else "",
            f"{nonfinite} have a loss that is NaN or infinite" if nonfinite else "",
        ]
        found = ", ".join(filter(None, reasons))
        return f": of {self.num_samples} samples {found}" if found else ""

    def state_dict(self) -> dict[str, Any]:
        """What the current epoch shows, and how much each epoch dropped."""
        codes = self._selection.codes
        return {
            **super().state_dict(),
            "dropped": self._dropped.clone(),
            "epoch": self._epoch,
            "codes": None if codes is None else torch.from_numpy(codes.copy()),
            "weights": list(self._selection.weights),
            "stats": dict(self._selection.stats),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Pruner.load_state_dict`."""
        super().load_state_dict(state)
        self._dropped = state["dropped"].clone()
        self._epoch = state["epoch"]
        codes = None if state["codes"] is None else state["codes"].cpu().numpy().copy()
        self._selection = Selection(codes, tuple(state["weights"]), dict(state["stats"]))


def _speaks() -> bool:
    """Whether this process is the one that writes what all workers know: rank 0, or the only one."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0
