"""Notices losses and weights that are not finite, without making the device wait.

The number of the first bad step is kept on the device. Every so many steps it is agreed on by the workers and
copied back in the background; the copy is looked at when the next one is due. So a worker never waits, and
all workers raise at the same step.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain_speedup.settings import RunFailed

NEVER = torch.iinfo(torch.int64).max


class NonFinite(RunFailed):
    """The loss or the weights became NaN or infinite."""


class LossAlarm:
    """Remembers the first step whose loss was not finite, on any worker.

    Args:
        device: where the losses are.
        every: steps between two looks.
    """

    def __init__(self, device: torch.device, every: int = 50) -> None:
        self.every = every
        self._first = torch.full((), NEVER, dtype=torch.int64, device=device)
        on_gpu = device.type == "cuda"
        self._copy = torch.full((), NEVER, dtype=torch.int64, pin_memory=on_gpu)
        self._arrived = torch.cuda.Event() if on_gpu else None

    def note(self, step: int, loss: Tensor) -> None:
        """Look at the loss, a scalar on the device, of a step; the first one is step 1.

        Raises:
            NonFinite: when the news of an earlier bad step have arrived.
        """
        self._first = torch.where(torch.isfinite(loss), self._first, self._first.clamp(max=step))
        if step % self.every == 0:
            if self._arrived is not None:
                self._arrived.synchronize()  # recorded `every` steps ago: long past
            self._raise_if(int(self._copy))
            self._copy.copy_(self._agreed(), non_blocking=True)
            if self._arrived is not None:
                self._arrived.record()

    def check(self, step: int, model: nn.Module) -> None:
        """Look now, waiting for the device; called before every checkpoint, so that checkpoints are good.

        A step whose loss was finite may have ruined the weights, which its loss cannot show.

        Args:
            step: the last one that was taken.
            model: its weights are alike on all workers.

        Raises:
            NonFinite: naming the first bad step.
        """
        self._raise_if(int(self._agreed()))
        largest = nn.utils.get_total_norm(model.parameters(), norm_type=torch.inf)
        if not torch.isfinite(largest):
            raise NonFinite(f"the weights are not finite after step {step}")

    def _agreed(self) -> Tensor:
        first = self._first.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        return first

    @staticmethod
    def _raise_if(step: int) -> None:
        if step != NEVER:
            raise NonFinite(f"the loss is not finite at step {step}")
