"""Static pruning: scores from a first phase on all data, then one subset for the rest of the run.

Controls that later work compares with. Each gives a sample an importance out of how its prediction went, and the
most important ones stay, at weight 1. They are written in p, the probability of the sample's label:

- `el2n` (Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021, https://arxiv.org/abs/2107.07075): the norm
  of the error, E ||softmax - onehot||_2, early in training. The paper claims that half of CIFAR-10 can be dropped
  at no loss, with scores of epoch 20 of 200 averaged over ten networks.
- `forgetting` (Toneva et al., ICLR 2019, https://arxiv.org/abs/1812.05159): how often a sample was classified
  rightly in one epoch and wrongly in the next, infinite for one never right. The paper claims that 30 % of
  CIFAR-10 (the never forgotten) can be dropped at no loss, with scores of a whole run.
- `dyn-unc` (He et al., "Large-scale Dataset Pruning with Dynamic Uncertainty", CVPR-W 2024,
  https://arxiv.org/abs/2306.05175): the mean over windows of J epochs, J = 10, of the deviation

      U_k = sqrt( sum_{j<J} (p_{k+j} - mean_j p_{k+j})^2 / (J - 1) ).

  The paper claims that 25 % of ImageNet-1K and -21K can be dropped at no loss, with scores of a whole run.

Ours differ in three ways. Scores come from the first `prune_from` of the run itself, not from an earlier one: what
they cost is on the run's account, a run needs no other's files, and a saving is over all passes. The pruner is told
losses, so p is exp(-loss): right for a cross-entropy without label smoothing or mixing, else a rising function of
it. And what p does not say is approximated: the norm of the error lies between 1 - p and sqrt(2) (1 - p) and is
taken as 1 - p; right is p > 1/2, which is sure to be right, where the largest class may do with less. Ties are
drawn; a sample without a (finite) loss stays.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raytrain_speedup.methods.pruning import draw
from raytrain_speedup.methods.pruning.base import EpochPlan
from raytrain_speedup.methods.pruning.scored import ScoredPruner
from raytrain_speedup.methods.pruning.selection import Selection, easiest, only
from raytrain_speedup.methods.pruning.unscaled import UnscaledPruner, UnscaledSettings

RIGHT = 0.5
"""A label whose probability is above this is the largest class whatever the others have."""


class StaticSettings(UnscaledSettings):
    """How long samples are judged, and how many are dropped then."""

    from_the_start: ClassVar[bool] = False
    prune_from: float = Field(
        0.25, ge=0, le=1, description="Progress up to which all data is shown and judged, one epoch at least."
    )


class EL2NSettings(StaticSettings):
    """Control: a static subset of the samples with the largest errors early in training (EL2N)."""

    method: Literal["el2n"] = Field("el2n", description="EL2N.")
    prune_from: float = Field(
        0.1, ge=0, le=1, description="Progress up to which all data is shown and judged, one epoch at least."
    )

    def _pruner(self) -> type[EL2N]:
        return EL2N


class ForgettingSettings(StaticSettings):
    """Control: a static subset of the samples forgotten most often."""

    method: Literal["forgetting"] = Field("forgetting", description="Forgetting events.")

    def _pruner(self) -> type[Forgetting]:
        return Forgetting


class DynUncSettings(StaticSettings):
    """Control: a static subset of the samples whose predictions vary most (Dyn-Unc)."""

    method: Literal["dyn-unc"] = Field("dyn-unc", description="Dynamic uncertainty.")
    window: int = Field(10, ge=2, description="Epochs over which a deviation is taken (the paper's J).")

    def _pruner(self) -> type[DynUnc]:
        return DynUnc


class StaticPruner(UnscaledPruner, ScoredPruner):
    """A pruner that judges samples for some epochs and then shows those of the highest importance.

    What was seen of an epoch is taken up when the next one is planned, after `exchange`: the same on every worker.
    """

    settings: StaticSettings

    @abstractmethod
    def _judge(self, probability: Tensor) -> None:
        """Take up an epoch: the probability (N,) of each label; NaN for a sample without a loss."""

    @abstractmethod
    def _importance(self) -> Tensor:
        """(N,) float32, higher for samples that are to stay; infinite for those that cannot be judged."""

    @abstractmethod
    def _judged(self) -> dict[str, Tensor | int]:
        """What `_judge` knows, by the names of the attributes that hold it."""

    def _plan(self, epoch: int) -> EpochPlan:
        if self._epoch is not None and epoch != self._epoch and self._selection.codes is None:
            scores, usable, _ = self._usable_scores()
            self._judge(torch.from_numpy(np.where(usable, np.exp(-scores), np.float32(np.nan))))
        return super()._plan(epoch)

    def _select(self, epoch: int) -> Selection:
        if self._selection.codes is not None:
            return self._selection
        _, usable, stats = self._usable_scores()
        if not usable.any():
            return Selection(stats=stats)
        drop = self._drop_count(epoch)
        everyone = np.ones(self.num_samples, dtype=np.bool_)
        ties = draw.generator(self.seed, 0, draw.TIES)
        shown = ~easiest(self._importance().numpy(), everyone, drop, ties)
        return only(shown, {**stats, "dropped": drop}, droppable=self._most_droppable())

    def state_dict(self) -> dict[str, Any]:
        """The scores, and what is known of each sample."""
        known = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._judged().items()}
        return {**super().state_dict(), **known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Pruner.load_state_dict`."""
        super().load_state_dict(state)
        for name in self._judged():
            value = state[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)


class EL2N(StaticPruner):
    """EL2N for one run: `EL2N(50_000, epochs=200, saving=0.3)`."""

    settings_class = EL2NSettings

    def __init__(self, num_samples: int, epochs: int | Sequence[float], **options: Any) -> None:
        super().__init__(num_samples, epochs, **options)
        self.error = torch.zeros(self.num_samples)
        self.epochs_judged = torch.zeros(self.num_samples)

    def _judge(self, probability: Tensor) -> None:
        known = ~probability.isnan()
        self.error += torch.where(known, 1 - probability, 0)
        self.epochs_judged += known

    def _importance(self) -> Tensor:
        return torch.where(self.epochs_judged > 0, self.error / self.epochs_judged, torch.inf)

    def _judged(self) -> dict[str, Tensor | int]:
        return {"error": self.error, "epochs_judged": self.epochs_judged}


class Forgetting(StaticPruner):
    """Forgetting events for one run: `Forgetting(50_000, epochs=200, saving=0.3)`."""

    settings_class = ForgettingSettings

    def __init__(self, num_samples: int, epochs: int | Sequence[float], **options: Any) -> None:
        super().__init__(num_samples, epochs, **options)
        self.right = torch.zeros(self.num_samples, dtype=torch.bool)
        self.ever_right = torch.zeros(self.num_samples, dtype=torch.bool)
        self.forgotten = torch.zeros(self.num_samples)

    def _judge(self, probability: Tensor) -> None:
        right = probability > RIGHT
        self.forgotten += self.right & ~right
        self.ever_right |= right
        self.right = right

    def _importance(self) -> Tensor:
        return torch.where(self.ever_right, self.forgotten, torch.inf)

    def _judged(self) -> dict[str, Tensor | int]:
        return {"right": self.right, "ever_right": self.ever_right, "forgotten": self.forgotten}


class DynUnc(StaticPruner):
    """Dyn-Unc for one run: `DynUnc(50_000, epochs=200, saving=0.2)`. It keeps J numbers per sample.

    Where the first phase is shorter than a window, what there is of it is one.
    """

    settings_class = DynUncSettings
    settings: DynUncSettings

    def __init__(self, num_samples: int, epochs: int | Sequence[float], **options: Any) -> None:
        super().__init__(num_samples, epochs, **options)
        self.recent = torch.empty(0, self.num_samples)
        self.deviations = torch.zeros(self.num_samples)
        self.windows = 0

    def _judge(self, probability: Tensor) -> None:
        self.recent = torch.cat([self.recent, probability[None]])[-self.settings.window :]
        if len(self.recent) == self.settings.window:
            self.deviations += self.recent.std(0)
            self.windows += 1

    def _importance(self) -> Tensor:
        if self.windows:
            deviation = self.deviations / self.windows
        elif len(self.recent) > 1:
            deviation = self.recent.std(0)
        else:
            deviation = torch.zeros(self.num_samples)
        return deviation.nan_to_num(nan=torch.inf)

    def _judged(self) -> dict[str, Tensor | int]:
        return {"recent": self.recent, "deviations": self.deviations, "windows": self.windows}
