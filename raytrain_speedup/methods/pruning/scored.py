"""What every method that looks at losses shares: a score of each sample, and how workers share them.

The score is the last loss that was observed. Where a loss is noisy on purpose, because a task draws a time step
or a mask anew at each visit, the last one says more of the draw than of the sample. Two ways lead from it to the
sample, and go together:

- Strata. A task may tell in which stratum a sample was met (a bin of the time step, say). Scores are then divided
  by the mean over the samples last met in their stratum: 1 is usual. `score_strata: false` takes them as they are.
- `score_momentum`. The score is an exponential mean over the visits of a sample, without the bias of its beginning
  (Kingma and Ba 2015, sec. 3), for the visits of an epoch are taken up when the next one is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.pruning.base import EpochPlan
from raytrain_speedup.methods.pruning.scheduled import ScheduledPruner
from raytrain_speedup.settings import Settings, UserError

UNSEEN, SHARED, FRESH = 0, 1, 2
"""What a worker knows of a sample's score: none yet; one that all workers know; one observed since."""


class ScoreSettings(Settings):
    """What a score remembers of earlier visits."""

    score_momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction of a score that stays when its sample is shown again, where losses are noisy (a "
        "drawn time step, say); by default the last loss counts alone.",
    )
    score_strata: bool | None = Field(
        None,
        description="Whether scores are compared within the strata that a task tells, such as bins of diffusion's "
        "time step; by default they are.",
    )


class ScoredPruner(ScheduledPruner):
    """A pruner that remembers the loss of each sample; see `ScheduledPruner` for the arguments.

    Scores live where the losses are, so that observing waits for no device: with no `device` given, where the
    first losses are. With another one given, losses on a GPU and scores on the CPU, every step waits for them.

    Attributes:
        scores: (N,) float32 on the device, the last observed loss of each sample.
        seen: (N,) int8 on the device, `UNSEEN`, `SHARED` or `FRESH`.
        strata: (N,) int64 on the device, in which each sample was last met; None where nobody tells.
        average: (N,) float64, the mean over visits that `score_momentum` asks for; None where it does not.
        visits: (N,) int64, how many it is of.
        visited: (N,) bool on the device, whose last visit it does not have yet.
    """

    def __init__(self, num_samples: int, epochs: int | Sequence[float], **options: Any) -> None:
        super().__init__(num_samples, epochs, **options)
        place = self.device or "cpu"
        self.scores = torch.zeros(self.num_samples, dtype=torch.float32, device=place)
        self.seen = torch.full((self.num_samples,), UNSEEN, dtype=torch.int8, device=place)
        self.strata: Tensor | None = None
        how = self.settings if isinstance(self.settings, ScoreSettings) else ScoreSettings()
        self.momentum = how.score_momentum
        self.stratified = how.score_strata is not False
        averaged = self.num_samples if self.momentum is not None else 0
        self.average = np.zeros(averaged)
        self.visits = np.zeros(averaged, dtype=np.int64)
        self.visited = torch.zeros(averaged, dtype=torch.bool, device=place)

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
            self.visited = self.visited.to(self.device)
        # A copy to the CPU has to be waited for: the kernels below would read it before it is there.
        ahead = self.device.type != "cpu"
        index = index.to(self.device, non_blocking=ahead)
        loss = loss.to(self.device, torch.float32, non_blocking=ahead)
        self.scores.index_copy_(0, index, loss)
        self.seen.index_fill_(0, index, FRESH)
        if self.momentum is not None:
            self.visited.index_fill_(0, index, True)

    @torch.no_grad()
    def stratify(self, index: Tensor, strata: Tensor) -> None:
        """See `Pruner.stratify`; one kernel, no synchronisation."""
        if not self.stratified:
            return
        if self.strata is None:
            place = self.device or strata.device
            self.strata = torch.zeros(self.num_samples, dtype=torch.int64, device=place)
        home = self.strata.device
        ahead = home.type != "cpu"
        index, strata = index.to(home, non_blocking=ahead), strata.to(home, non_blocking=ahead)
        self.strata.index_copy_(0, index, strata)

    @torch.no_grad()
    def exchange(self) -> None:
        """Share the scores observed since the last exchange: one all-reduce of 8 N bytes, 12 N with strata.

        A sample that several workers observed gets the mean of what they saw.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        home = self.scores.device
        fresh = self.seen == FRESH
        known = [self.scores] if self.strata is None else [self.scores, self.strata]
        rows = torch.zeros(len(known) + 1, self.num_samples, dtype=torch.float32, device=home)
        for row, values in zip(rows, known, strict=False):
            row.copy_(values).masked_fill_(~fresh, 0)  # a product would spread NaN
        rows[-1].copy_(fresh)
        rows = rows.to(carried_on(home))
        dist.all_reduce(rows)
        *totals, count = rows.to(home)
        observed = count > 0
        for values, total in zip(known, totals, strict=True):
            values.copy_(torch.where(observed, total.div_(count).to(values.dtype), values))
        self.seen.clamp_(max=SHARED).masked_fill_(observed, SHARED)
        if self.momentum is not None:
            self.visited.logical_or_(observed)

    def _plan(self, epoch: int) -> EpochPlan:
        if epoch != self._epoch and self.momentum is not None:
            self._take_up_visits(self.momentum)
        return super()._plan(epoch)

    def _take_up_visits(self, momentum: float) -> None:
        """Between epochs, when all workers know the same."""
        scores, usable, _ = self._last_scores()
        new = self.visited.cpu().numpy() & usable
        self.visits[new] += 1
        share = (1 - momentum) / (1 - momentum ** self.visits[new])
        self.average[new] += share * (scores[new] - self.average[new])
        self.visited.zero_()

    def _usable_scores(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, float]]:
        """Scores (N,), which of them can be judged by (observed and finite), and how many cannot, as stats."""
        scores, usable, stats = self._last_scores()
        return scores if self.momentum is None else self.average.astype(np.float32), usable, stats

    def _last_scores(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, float]]:
        """As `_usable_scores`, of the last visit of each sample alone."""
        scores = self.scores.cpu().numpy()
        usable = self.seen.cpu().numpy() > UNSEEN
        seen = int(np.count_nonzero(usable))
        usable &= np.isfinite(scores)
        finite = int(np.count_nonzero(usable))
        if self.strata is not None:
            scores = relative_to_stratum(scores, usable, self.strata.cpu().numpy())
        return scores, usable, {"unobserved": self.num_samples - seen, "nonfinite": seen - finite}

    def _hardness(self) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Scores (N,) to rank samples by: those that cannot be judged come last, as the hardest. And the stats."""
        scores, usable, stats = self._usable_scores()
        return np.where(usable, scores, np.float32(np.inf)), stats

    def state_dict(self) -> dict[str, Any]:
        """Scores and flags by sample, and the plan's state; alike on all workers after `exchange`."""
        state = super().state_dict()
        state["scores"] = self.scores.to("cpu", copy=True)
        state["seen"] = (self.seen > UNSEEN).cpu()
        if self.strata is not None:
            state["strata"] = self.strata.to("cpu", copy=True)
        if self.momentum is not None:
            state["average"], state["visits"] = (torch.tensor(known) for known in (self.average, self.visits))
            state["visited"] = self.visited.to("cpu", copy=True)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `ScheduledPruner.load_state_dict`."""
        if "strata" in state:  # a task told them, and will again
            self.strata = state["strata"].to(self.scores.device, copy=True)
        super().load_state_dict(state)
        self.scores.copy_(state["scores"])
        self.seen.copy_(state["seen"])  # True is SHARED
        if self.momentum is not None:
            self.average, self.visits = (state[name].cpu().numpy().copy() for name in ("average", "visits"))
            self.visited.copy_(state["visited"])


def relative_to_stratum(
    scores: NDArray[np.float32], usable: NDArray[np.bool_], strata: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Scores (N,) over the mean of the usable ones of their stratum (N,), from 0: the same on every worker, for the
    sums are taken in the order of the samples. A stratum whose mean is 0 keeps its scores."""
    counts = np.bincount(strata[usable], minlength=strata.max() + 1)
    sums = np.bincount(strata[usable], scores[usable], minlength=strata.max() + 1)  # float64
    means = np.divide(sums, counts, out=np.ones_like(sums), where=sums != 0)
    return (scores / means[strata]).astype(np.float32)


def carried_on(home: torch.device) -> torch.device:
    """Where the process group takes a tensor of `home`: there, or on this process's accelerator.

    A group of nccl alone refuses tensors of the CPU.
    """
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    return home if home.type in kinds else torch.device(kinds[0])
