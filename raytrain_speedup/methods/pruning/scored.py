"""What every method that looks at losses shares: the last loss of each sample, and how workers share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from raytrain_speedup.methods.pruning.scheduled import ScheduledPruner
from raytrain_speedup.settings import UserError

UNSEEN, SHARED, FRESH = 0, 1, 2
"""What a worker knows of a sample's score: none yet; one that all workers know; one observed since."""


class ScoredPruner(ScheduledPruner):
    """A pruner that remembers the last loss of each sample; see `ScheduledPruner` for the arguments.

    Scores live where the losses are, so that observing waits for no device: with no `device` given, where the
    first losses are. With another one given, losses on a GPU and scores on the CPU, every step waits for them.

    Attributes:
        scores: (N,) float32 on the device, the last observed loss of each sample.
        seen: (N,) int8 on the device, `UNSEEN`, `SHARED` or `FRESH`.
    """

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

    def _usable_scores(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, float]]:
        """Scores (N,), which of them can be judged by (observed and finite), and how many cannot, as stats."""
        scores = self.scores.cpu().numpy()
        usable = self.seen.cpu().numpy() > UNSEEN
        seen = int(np.count_nonzero(usable))
        usable &= np.isfinite(scores)
        finite = int(np.count_nonzero(usable))
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
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `ScheduledPruner.load_state_dict`."""
        super().load_state_dict(state)
        self.scores.copy_(state["scores"])
        self.seen.copy_(state["seen"])  # True is SHARED


def carried_on(home: torch.device) -> torch.device:
    """Where the process group takes a tensor of `home`: there, or on this process's accelerator.

    A group of nccl alone refuses tensors of the CPU.
    """
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config().split(",")]
    return home if home.type in kinds else torch.device(kinds[0])
