"""What a run has shown, lost and spent up to now, counted step by step without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.cost.costs import Costs

COUNTERS = ("steps_taken", "samples_shown", "compute_spent", "flops_spent")


class Tally:
    """Counts the steps of a run.

    Args:
        num_samples: of the training set.
        flops: training FLOPs of one sample by input size and fraction of the tokens kept.
        device: where losses and weights are.
        rank, world: of this process.

    Attributes:
        samples_shown: by all ranks together, replayed ones included.
        compute_spent: the same in epoch equivalents.
        flops_spent: those of the batches' making among them.
        bytes_read: by the batches of all ranks; None where they are not counted.
    """

    def __init__(
        self,
        num_samples: int,
        flops: Mapping[tuple[int | None, float], float],
        *,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self.steps_taken = 0
        self.samples_shown = 0
        self.compute_spent = 0.0
        self.flops_spent = 0.0
        self.bytes_read: float | None = None
        self._num_samples, self._flops, self._rank, self._world = num_samples, flops, rank, world
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # weighted losses, weights
        self._spared = 0.0  # FLOPs that this rank did not take; known without asking the device
        self._taken = 0  # bytes by this rank

    def count(self, step: Step, weighted_loss: Tensor, weight: Tensor, rows: int) -> None:
        """A step that was taken.

        Args:
            weighted_loss: () the sum over this rank's part of it.
            weight: (b,) of the samples of the part.
            rows: inputs that the model was asked with for them; fewer than b where samples were packed.
        """
        self.steps_taken += 1
        flops = self._flops[step.stage.size, step.stage.tokens]
        self._spared += flops * (len(weight) - rows)
        self._sums += torch.stack([weighted_loss, weight.sum()])
        self.samples_shown += step.count
        self.compute_spent += step.count * step.stage.cost / self._num_samples
        self.flops_spent += step.count * flops

    def took(self, nbytes: int | None) -> None:
        """Bytes that this rank's batch took from where the samples lie; None where they are not counted."""
        if nbytes is not None:
            self.bytes_read = self.bytes_read or 0.0
            self._taken += nbytes

    def mean_loss(self) -> float:
        """The weighted mean of the losses since this was last asked, over all ranks; what they spared is taken off
        the FLOPs, and what they read is added up."""
        total, weight, spared, taken = self._all_sums().tolist()
        self.flops_spent -= spared
        if self.bytes_read is not None:
            self.bytes_read += taken
        self._sums.zero_()
        self._spared, self._taken = 0.0, 0
        return total / weight

    def costs(self, seconds: Mapping[str, float], in_steps: Mapping[str, float]) -> Costs:
        """What was spent.

        Args:
            seconds: of the stopwatch.
            in_steps: of the reference.
        """
        return Costs(
            **seconds,
            samples_shown=self.samples_shown,
            samples_per_second=self.samples_shown / max(seconds["train_seconds"], 1e-9),
            compute_spent=self.compute_spent,
            bytes_read=self.bytes_read,
            train_flops=self.flops_spent,
            **in_steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """What all ranks share; called on all of them."""
        counted = {name: getattr(self, name) for name in (*COUNTERS, "bytes_read")}
        return {"sums": self._all_sums(), **counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.bytes_read = state.get("bytes_read")
        if self._rank == 0:  # they hold the sums of all ranks
            spared, taken = [*state["sums"][2:].tolist(), 0.0, 0.0][:2]  # earlier versions know of none
            self._sums.copy_(state["sums"][:2])
            self._spared, self._taken = spared, int(taken)

    def _all_sums(self) -> Tensor:
        sums = torch.cat([self._sums, self._sums.new_tensor([self._spared, self._taken])])
        if self._world > 1:
            dist.all_reduce(sums)
        return sums
