"""What a pruning method is: a plan before the epoch, observations during it, one exchange after it.

    for epoch in range(epochs):
        plan = pruner.plan(epoch)
        for index, weight in plan.batches(128):
            losses = criterion(model(inputs[index]), target[index])   # one loss per sample
            pruner.observe(index, losses.detach())
            (losses * weight).mean().backward()
            ...
        pruner.exchange()                                             # does nothing on one worker

Index and weight travel with the sample, so look-ahead in a loader cannot mix them up, and nothing is
patched. A method is a settings class (what the experiment file says) and a pruner (what the loop talks to).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from raytrain_speedup.settings import Settings, UserError

TOLERANCE = 1e-9
"""Of progress: the ends of epochs are sums of rounded steps."""

Rescale = Literal["exact", "none"]
"""Whether the samples shown make up for those that are not: by weights that sum to N, or not at all."""


@dataclass(frozen=True)
class EpochPlan:
    """Which samples an epoch shows, in which order, and how much each one counts.

    Attributes:
        indices: (M,) int64 on the CPU, positions in the data set, shuffled; each at most once.
        weights: (M,) float32 on the CPU. With `rescale` exact they sum to `num_samples` (exactly, before rounding
            to float32), with none all are 1, but for a coreset that another method plans: there they sum to its
            size.
        num_samples: N, the size of the data set.
        stats: metrics for the log, such as `threshold`, `eligible` and `nonfinite` (counts are ints).
        rescale: whether the weights make up for what is not shown.
    """

    indices: Tensor
    weights: Tensor
    num_samples: int
    stats: Mapping[str, float] = field(default_factory=dict)
    rescale: Rescale = "exact"

    @property
    def kept(self) -> int:
        """M, the number of samples shown."""
        return len(self.indices)

    @property
    def kept_fraction(self) -> float:
        """M / N."""
        return self.kept / self.num_samples

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, weights) of one batch after another, for a plain loop on one worker."""
        yield from zip(self.indices.split(batch_size), self.weights.split(batch_size), strict=True)


class Pruner(ABC):
    """Decides before every epoch which samples it shows.

    Args:
        num_samples: N, the size of the data set.
        epochs: how many epochs of equal length the run has, or the progress in (0, 1] at which each one ends.
        seed: the randomness of epoch e is a function of (seed, e) alone; no global generator is touched.

    Raises:
        UserError: if there are no samples or no epochs.
    """

    def __init__(self, num_samples: int, epochs: int | Sequence[float], *, seed: int = 0) -> None:
        if num_samples < 1 or num_samples != int(num_samples):
            raise UserError(f"num_samples: {num_samples} is not allowed; expected a whole number, at least 1")
        self.num_samples = int(num_samples)  # NumPy's integers and whole floats are in no checkpoint
        self.epoch_ends = epochs if isinstance(epochs, Sequence) else equal_epochs(epochs)
        if not self.epoch_ends:
            raise UserError("epochs: the run has none; expected at least 1")
        self.seed = int(seed)

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch: a function of (state, seed, epoch), the same on every worker.

        What an epoch shows is settled when it is first planned: the same call in the middle of it, or after
        resuming there, gives the same plan again, whatever was observed meanwhile.

        Raises:
            UserError: if the run has no such epoch.
        """
        if not 0 <= epoch < len(self.epoch_ends):
            raise UserError(f"plan: the run has no epoch {epoch}; expected 0 to {len(self.epoch_ends) - 1}")
        return self._plan(epoch)

    @abstractmethod
    def _plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch that the run has."""

    def describe(self, features: Tensor) -> None:  # noqa: B027 - most methods need none
        """Take up what the samples are like, (N, d) float, before the first epoch (`PrunerSettings.described`)."""

    def observe(self, index: Tensor, loss: Tensor) -> None:  # noqa: B027 - most controls need no losses
        """Note the raw losses (float, (b,)) of the samples `index` (int64, (b,)) without a device sync."""

    def stratify(self, index: Tensor, strata: Tensor) -> None:  # noqa: B027
        """Note in which strata (int64 from 0, (b,)) the samples `index` are met: losses are compared with those of
        the same stratum, as where a task draws how hard a sample is at this visit. Goes with `observe`."""

    def exchange(self) -> None:  # noqa: B027
        """Share what the workers observed: the epoch's one collective. Does nothing on one worker.

        Every worker has to call it. It may also be called within an epoch, before `state_dict`.
        """

    def state_dict(self) -> dict[str, Any]:
        """All state, keyed by sample and not by worker, so that another number of workers can load it."""
        return {"num_samples": self.num_samples, "seed": self.seed, "epoch_ends": list(self.epoch_ends)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`, whatever number of workers wrote it.

        Raises:
            UserError: if it is the state of another data set, seed, run or method: what it says of an epoch
                would be about other draws.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise UserError(
                f"pruning: the checkpoint holds another method's state ({', '.join(state) or 'empty'}); "
                f"expected {', '.join(mine)}"
            )
        theirs, ends = state["epoch_ends"], self.epoch_ends
        apart = [
            e for e, pair in enumerate(zip(theirs, ends, strict=False)) if abs(pair[0] - pair[1]) > TOLERANCE
        ]
        if state["num_samples"] != self.num_samples:
            problem = f"a data set of {state['num_samples']} samples; expected {self.num_samples}"
        elif state["seed"] != self.seed:
            problem = f"seed {state['seed']}; expected {self.seed}"
        elif len(theirs) != len(ends):
            problem = f"a run of {len(theirs)} epochs; expected {len(ends)}"
        elif apart:
            first = apart[0]
            problem = (
                f"a run whose epoch {first} ends at progress {theirs[first]:g}; expected {ends[first]:g}"
            )
        else:
            return
        raise UserError(f"pruning: the checkpoint is of {problem}")


class PrunerSettings(Settings):
    """What the experiment file says of a pruning method; `method` names it."""

    method: str
    rescale: ClassVar[Rescale] = "exact"
    """Of every plan of the method; see `EpochPlan`."""
    described: ClassVar[bool] = False
    """Whether its pruner wants to be told features of the samples (`Pruner.describe`)."""

    def budget_factor(self) -> float:
        """How many full-data epochs are shown per budgeted epoch (below 1 only for `epochs`)."""
        return 1.0

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str | None = None,
        last_epoch_fraction: float = 1.0,
    ) -> Pruner:
        """The pruner itself, for a run whose budget is `budget_factor` of what it would be without pruning.

        Args:
            num_samples, epoch_ends, seed: as of `Pruner`.
            device: where scores are kept: where `observe` is called with tensors, so that observing never
                waits for the device. None is the device of the first losses.
            last_epoch_fraction: of the last epoch's plan, what is shown before progress reaches 1; below 1
                where a curriculum's steps do not divide the budget. Only a promised saving looks at it.

        Raises:
            UserError: if the settings can't be met on these epochs (a saving out of reach, say).
        """
        raise NotImplementedError

    def build_for_loop(
        self, num_samples: int, epochs: int, *, seed: int, device: torch.device | str | None = None
    ) -> Pruner:
        """The pruner of a plain loop over `epochs` epochs, which nothing shortens but the plans themselves."""
        return self.build(num_samples, equal_epochs(epochs), seed=seed, device=device)


def equal_epochs(epochs: int) -> list[float]:
    """The progress at which each of `epochs` epochs of the same length ends.

    Raises:
        UserError: unless that is a whole number, at least 1.
    """
    if epochs < 1 or epochs != int(epochs):
        raise UserError(f"epochs: {epochs} is not allowed; expected a whole number, at least 1")
    return [(epoch + 1) / int(epochs) for epoch in range(int(epochs))]
