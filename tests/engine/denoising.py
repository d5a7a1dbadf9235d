"""A task as the next ones will be: no classes, its own draws, a model that is asked with more than an image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from raytrain_speedup import randomness
from raytrain_speedup.data.batch import Batch
from raytrain_speedup.tasks import Losses, Model, Split, Task, TaskSettings


class DenoisingSettings(TaskSettings):
    kind: Literal["denoising"] = "denoising"

    def build(self) -> Task:
        return Denoising()


class Denoising(Task):
    """Find the image in a mixture of it with noise, told how much of it is noise (Ho et al., arXiv 2006.11239, but
    for the weights of the losses). Samples are scored by how wrong they are for their amount of noise."""

    metric = "error"
    direction = "min"
    draws = True

    def losses(self, model: Model, batch: Batch) -> Losses:
        wrong, amount = self._wrong(model, batch)
        return Losses(wrong, wrong / amount)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        wrong = self._wrong(model, batch)[0].double()
        return torch.stack([wrong.sum(), wrong.new_tensor(float(len(wrong)))])

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        wrong, count = totals.tolist()
        return {"loss": wrong / count, "error": wrong / count}

    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        return {"inputs": torch.zeros(count, *shape), "draws": torch.arange(count)}

    def _wrong(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """The error of every image, and the fraction of it that is noise."""
        images, draws = batch["inputs"], batch["draws"]
        amount = 0.1 + 0.8 * randomness.unit(randomness.bits(draws, seed=0, epoch=0, streams=(0,))[0])
        pixels = torch.arange(images[0].numel(), device=draws.device)
        drawn = randomness.unit(randomness.bits(draws[:, None] + pixels, seed=0, epoch=0, streams=(1,))[0])
        share = amount.view(-1, 1, 1, 1)
        mixture = (1 - share) * images + share * (2 * drawn - 1).view(images.shape)
        return (model(mixture, amount).float() - images).square().mean((1, 2, 3)), amount
