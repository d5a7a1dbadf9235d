"""A learning-rate scheduler that follows progress and not a count of steps.

Frameworks count the steps of full epochs, of which a pruned run makes fewer. So Lightning's OneCycle ended at .0038
of .05, and Hugging Face's cosine at .0027: neither annealed. Progress, the fraction of the budget that is spent, is
1 at the end of every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raytrain_speedup.adapters.epochs import PrunedEpochs
from raytrain_speedup.config import TrainSettings
from raytrain_speedup.engine.learning_rate import learning_rate
from raytrain_speedup.settings import explain

Factor = Callable[[float], float]
"""Of progress in [0, 1]: what the learning rate of a parameter group is multiplied by."""


class ProgressLR(LRScheduler):
    """Learning rates as a function of the progress of a loader or sampler; `step` follows every optimizer step.

    Args:
        optimizer: its learning rates are the peaks.
        epochs: the loader or sampler.
        schedule: the engine's `one-cycle`, `cosine` or `constant`, or a factor as a function of progress.
        warmup: fraction of the budget in which the learning rate rises.
        start_div: it starts at lr / start_div,
        final_div: and ends at lr / (start_div * final_div).

    Where a curriculum's stage has larger batches, its `lr_rule` is applied too.

    Raises:
        UserError: if a setting is wrong.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: PrunedEpochs,
        schedule: Literal["one-cycle", "cosine", "constant"] | Factor = "cosine",
        *,
        warmup: float = 0.05,
        start_div: float = 25.0,
        final_div: float = 1e4,
    ) -> None:
        self._source = epochs
        if callable(schedule):
            factor = schedule
            self._lr_at = lambda progress, peak: peak * factor(progress)
        else:
            shape = {"schedule": schedule, "warmup": warmup, "start_div": start_div, "final_div": final_div}
            try:
                settings = TrainSettings.model_validate(shape)
            except ValidationError as error:
                raise explain(error, TrainSettings, where="ProgressLR") from None
            self._lr_at = lambda progress, peak: learning_rate(
                progress, settings.model_copy(update={"lr": peak})
            )
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group for the next step."""
        progress, scale = self._source.progress, self._source.lr_scale
        return [self._lr_at(progress, float(peak)) * scale for peak in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """All but the functions and the loader."""
        return {
            name: value for name, value in super().state_dict().items() if name not in ("_source", "_lr_at")
        }
