"""Dataset quantization: a coreset that is chosen before the training, and another method on what is left.

DQ (Zhou et al., "Dataset Quantization", ICCV 2023, https://arxiv.org/abs/2308.10524). The data are cut into bins of
equal size, one after another. A bin takes, sample by sample, the x of what no bin has yet (R) with the largest gain

    sum_{p in bin} ||f(p) - f(x)||^2  -  sum_{p in R} ||f(p) - f(x)||^2,

far from what the bin has and near what is left (GraphCut). So early bins hold typical samples, later ones rarer and
rarer ones, and the same fraction of every bin, drawn uniformly, is the coreset. The paper claims that 60 % of
ImageNet and 20 % of Alpaca's instructions train as well as all. It drops patches of images too; this does not.

Features f(x) are the task's: of a language model the mean of a sample's input embeddings, where the paper takes a
trained network's output. Squared distances to a set are known from its size, its sum and its sum of squares, so
that a choice takes one product of all features with the last one chosen: N^2 d multiplications in all instead of
N^3 d.

Samples outside the coreset are not made up for (`rescale` is none). InfoBatch ran on LLaMA with DQ before it:
`within` is the method that plans the epochs of the coreset, as if there were no other data. A pruner that was told
no features shows all data, and says so.

    pruner = DQSettings(fraction=0.5, within={"method": "infobatch"}).build(len(data), ends, seed=0)
    pruner.describe(features)                                # (N, d), before the first epoch
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.base import EpochPlan, Pruner, PrunerSettings, Rescale
from raytrain_speedup.methods.pruning.dynamic_random import DynamicRandomSettings
from raytrain_speedup.methods.pruning.full_data import NoPruningSettings
from raytrain_speedup.methods.pruning.infobatch import InfoBatchSettings
from raytrain_speedup.methods.pruning.orderdp import OrderDPSettings
from raytrain_speedup.methods.pruning.rs2 import RS2Settings
from raytrain_speedup.methods.pruning.seta import SeTaSettings
from raytrain_speedup.registry import Chosen, Registry
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.pruning")

WITHIN = Registry(
    PrunerSettings,
    tag="method",
    group="raytrain_speedup.pruning.within",
    entries={
        "none": NoPruningSettings,
        "infobatch": InfoBatchSettings,
        "random": DynamicRandomSettings,
        "rs2": RS2Settings,
        "orderdp": OrderDPSettings,
        "seta": SeTaSettings,
    },
)
"""Methods that can plan the epochs of a coreset: those that decide anew in every epoch."""


class DQSettings(PrunerSettings):
    """Dataset quantization (ICCV 2023): a static coreset of typical and rare samples."""

    method: Literal["dq"] = Field("dq", description="Dataset quantization.")
    rescale: ClassVar[Rescale] = "none"
    described: ClassVar[bool] = True
    fraction: float = Field(0.5, gt=0, le=1, description="Fraction of every bin that is in the coreset.")
    bins: int = Field(10, ge=1, description="Bins of equal size that the data are cut into.")
    within: Annotated[SerializeAsAny[PrunerSettings], Chosen(WITHIN)] = Field(
        default_factory=NoPruningSettings,
        description="What an epoch shows of the coreset: another method's section.",
    )

    def build(
        self,
        num_samples: int,
        epoch_ends: Sequence[float],
        *,
        seed: int,
        device: torch.device | str | None = None,
        last_epoch_fraction: float = 1.0,
    ) -> DatasetQuantization:
        """See `PrunerSettings.build`."""

        def within(size: int) -> Pruner:
            return self.within.build(
                size, epoch_ends, seed=seed, device=device, last_epoch_fraction=last_epoch_fraction
            )

        return DatasetQuantization(
            num_samples, epoch_ends, seed=seed, fraction=self.fraction, bins=self.bins, within=within
        )


class DatasetQuantization(Pruner):
    """Shows a coreset, by the plans of another pruner that knows of nothing else.

    Args:
        num_samples, epochs, seed: see `Pruner`.
        fraction: of every bin that is in the coreset, one sample at least.
        bins: how many.
        within: makes the pruner of a coreset of so many samples.
    """

    def __init__(
        self,
        num_samples: int,
        epochs: int | Sequence[float],
        *,
        seed: int = 0,
        fraction: float,
        bins: int,
        within: Callable[[int], Pruner],
    ) -> None:
        super().__init__(num_samples, epochs, seed=seed)
        self.fraction, self.bins, self._make = fraction, bins, within
        self._within = within(self.num_samples)
        self._coreset: Tensor | None = None
        self._place: Tensor | None = None  # (N,) int64, of a sample in the coreset, where losses are
        self._told = False  # that there are no features

    def describe(self, features: Tensor) -> None:
        """Choose the coreset by the samples' features, (N, d) on any device; the same on every worker that is given
        the same features.

        Raises:
            UserError: unless there are finite features of every sample.
        """
        if features.dim() != 2 or len(features) != self.num_samples or not bool(features.isfinite().all()):
            raise UserError(
                f"pruning: features of shape {tuple(features.shape)}; expected finite ones, (N, d) for the "
                f"{self.num_samples} samples"
            )
        chosen = torch.zeros(self.num_samples, dtype=torch.bool)
        for number, members in enumerate(graph_cut_bins(features, self.bins)):
            among = np.zeros(self.num_samples, dtype=np.bool_)
            among[members.numpy()] = True
            count = max(1, round(self.fraction * len(members)))
            drawn = draw.draw(among, count, draw.generator(self.seed, number, draw.SURVIVORS))
            chosen |= torch.from_numpy(drawn)
        self._take(chosen.nonzero().squeeze(1))

    def _take(self, coreset: Tensor | None) -> None:
        self._coreset, self._place = coreset, None
        self._within = self._make(self.num_samples if coreset is None else len(coreset))

    def _plan(self, epoch: int) -> EpochPlan:
        plan = self._within.plan(epoch)
        if self._coreset is None:
            if not self._told:
                log.warning("pruning: dq was told no features (`describe`); all data is shown")
                self._told = True
            return plan
        stats = {**plan.stats, "coreset": len(self._coreset)}
        return replace(
            plan,
            indices=self._coreset[plan.indices],
            num_samples=self.num_samples,
            stats=stats,
            rescale="none",
        )

    def observe(self, index: Tensor, loss: Tensor) -> None:
        """See `Pruner.observe`; all samples are of the coreset, where there is one."""
        self._within.observe(self._within_coreset(index), loss)

    def stratify(self, index: Tensor, strata: Tensor) -> None:
        """See `Pruner.stratify`."""
        self._within.stratify(self._within_coreset(index), strata)

    def _within_coreset(self, index: Tensor) -> Tensor:
        """The places (b,) of samples (b,) in the coreset."""
        if self._coreset is None:
            return index
        if self._place is None or self._place.device != index.device:
            place = torch.zeros(self.num_samples, dtype=torch.int64)
            place[self._coreset] = torch.arange(len(self._coreset))
            self._place = place.to(index.device)
        return self._place[index]

    def exchange(self) -> None:
        self._within.exchange()

    def state_dict(self) -> dict[str, Any]:
        """The coreset, and the state of the method within."""
        coreset = None if self._coreset is None else self._coreset.clone()
        return {**super().state_dict(), "coreset": coreset, "within": self._within.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Pruner.load_state_dict`; the coreset is that of the state, whatever `describe` was told."""
        super().load_state_dict(state)
        self._take(state["coreset"])
        self._within.load_state_dict(state["within"])


def graph_cut_bins(features: Tensor, bins: int) -> list[Tensor]:
    """The samples in bins of equal size (they differ by one at most), each in the order in which it took them.

    Args:
        features: (N, d) on any device; a shift of all changes nothing.
        bins: how many; not more than N are made.

    Returns:
        Positions, int64 on the CPU.
    """
    count = len(features)
    bins = min(bins, count)
    x = features - features.mean(0)  # so that differences of large sums stay exact
    square = x.square().sum(1)  # (N,)
    free = torch.ones(count, dtype=torch.bool, device=x.device)
    rest, taken = x.sum(0), torch.empty(count, dtype=torch.int64, device=x.device)
    ends = [count * (number + 1) // bins for number in range(bins)]
    done = 0
    for end in ends:
        along, begin = x @ rest, done  # x . (sum of R - sum of the bin)
        while done < end:
            # The gain, without the sums of squares, which are the same for every x.
            gain = (2 * (done - begin) - (count - begin)) * square + 2 * along
            best = gain.masked_fill(~free, -torch.inf).argmax()
            taken[done] = best
            free[best] = False
            along -= 2 * (x @ x[best])
            rest = rest - x[best]
            done += 1
    return list(taken.cpu().tensor_split(ends[:-1]))
