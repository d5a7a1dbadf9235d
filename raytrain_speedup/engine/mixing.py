"""Mixup and CutMix that keep pruning unbiased.

The loss of a mixed image belongs to two samples. So that every sample keeps its own weight, partners are
drawn only among samples of the same weight, and the score of a sample is gathered from the two images it
appears in, by its fraction in each (InfoBatch, arXiv 2303.04947, appendix on label mixing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raytrain_speedup.config import TrainSettings
from raytrain_speedup.data.batch import Batch
from raytrain_speedup.randomness import numpy_generator


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: image i is `fraction` of sample i and 1 - `fraction` of sample `partner[i]`."""

    partner: Tensor
    fraction: float

    def scores(self, own: Tensor, others: Tensor) -> Tensor:
        """The score of every sample, (b,).

        Args:
            own: (b,) losses of image i for the target of sample i.
            others: (b,) losses of image i for the target of sample `partner[i]`.
        """
        return (self.fraction * own).index_add(0, self.partner, (1 - self.fraction) * others)


def partners(weight: Tensor) -> Tensor:
    """For every sample of a batch another one of the same weight, as a permutation; (b,) int64, no sync.

    Samples of one weight form a ring and each takes the next. The order of a batch is random, so a neighbour
    is a random partner. A sample that is alone with its weight is its own partner.
    """
    order = weight.argsort(stable=True)
    sorted_weight = weight[order]
    position = torch.arange(len(weight), device=weight.device)
    is_first = torch.ones_like(position, dtype=torch.bool)
    is_first[1:] = sorted_weight[1:] != sorted_weight[:-1]
    first = torch.where(is_first, position, 0).cummax(0).values
    is_last = is_first.roll(-1)
    following = torch.where(is_last, first, position + 1)
    partner = torch.empty_like(order)
    partner[order] = order[following]
    return partner


def mix_batch(batch: Batch, train: TrainSettings, *, key: tuple[int, ...]) -> tuple[Batch, Mix | None]:
    """Mix a batch as the experiment asks: its inputs, and the rows `mixed_target` and `fraction` beside the target.
    None where nothing is mixed.

    Args:
        key: (seed, epoch, step); the drawn fractions and boxes are a function of it, the same on every rank.
    """
    if not (train.mixup or train.cutmix) or len(batch["inputs"]) < 2:
        return batch, None
    inputs, mix = _mix_images(batch["inputs"], batch["weight"], train, key)
    fraction = torch.full_like(batch["weight"], mix.fraction, dtype=torch.float64)
    mixed_target = batch["target"][mix.partner]
    return batch | {"inputs": inputs, "mixed_target": mixed_target, "fraction": fraction}, mix


def _mix_images(
    inputs: Tensor, weight: Tensor, train: TrainSettings, key: tuple[int, ...]
) -> tuple[Tensor, Mix]:
    """Mix images (b, C, H, W)."""
    rng = numpy_generator(*key)
    partner = partners(weight)
    use_cutmix = bool(train.cutmix) and (not train.mixup or rng.random() < train.mix_switch)
    alpha = train.cutmix if use_cutmix else train.mixup
    fraction = float(rng.beta(alpha, alpha))
    if not use_cutmix:
        return torch.lerp(inputs[partner], inputs, fraction), Mix(partner, fraction)
    height, width = inputs.shape[-2:]
    cut = (1 - fraction) ** 0.5
    center_y, center_x = rng.random(2) * (height, width)
    top, bottom = (int(np.clip(center_y + side * cut * height / 2, 0, height)) for side in (-1, 1))
    left, right = (int(np.clip(center_x + side * cut * width / 2, 0, width)) for side in (-1, 1))
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = inputs[partner][..., top:bottom, left:right]
    return mixed, Mix(partner, 1 - (bottom - top) * (right - left) / (height * width))
