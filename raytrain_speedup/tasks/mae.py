"""Masked image modelling: fill in the patches of an image that were masked, and be judged by a linear probe.

MAE (He et al., CVPR 2022, https://arxiv.org/abs/2111.06377). What counts of such a network is what its features
are worth afterwards, and its loss does not tell (a smaller mask ratio has a smaller loss): `probe_accuracy` is that
of a linear classifier on frozen features, fitted in closed form before each evaluation, and it ranks the runs of a
sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, Task, TaskSettings
from raytrain_speedup.tasks.images import image_grid

Target = Literal["normalised-pixels", "pixels", "hog"]

RIDGE = 1e-3
"""Weight of the probe's penalty beside features of variance 1."""

EPSILON = 1e-6
"""Beside the variance of a patch, as in the paper's code."""

GREY = 127
"""Of a patch that is not seen, for people."""

BINS, CELL = 9, 8
"""Of a histogram of oriented gradients: directions, and pixels of a cell (Dalal and Triggs 2005)."""


class MAESettings(TaskSettings):
    kind: Literal["mae"] = "mae"
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="fraction of the patches that are masked")
    reconstruct: Target = Field(
        "normalised-pixels",
        description="what is predicted of a patch: its pixels, each patch with mean 0 and variance 1, its pixels "
        "as they are, or histograms of oriented gradients (as EfficientTrain++ does)",
    )
    probe_samples: int = Field(
        20_000,
        ge=0,
        description="training samples that the linear probe is fitted on; 0: none is, and the loss ranks runs",
    )

    def build(self) -> Task:
        return MaskedImages(self.mask_ratio, self.reconstruct, self.probe_samples)


class MaskedImages(Task):
    """A sample's loss, and its score, is the mean squared error over its masked patches.

    Which patches are masked is drawn anew in every epoch, and in evaluations always alike.

    Args:
        mask_ratio: fraction of the patches.
        reconstruct: what is predicted of them.
        probe_samples: the linear probe is fitted on; without any, `reconstruction_error` ranks runs.
    """

    draws = True
    shown = 8
    metric = "probe_accuracy"
    targets: str | None = "classes"
    others: Mapping[str, Direction] = {"reconstruction_error": "min"}

    def __init__(
        self, mask_ratio: float = 0.75, reconstruct: Target = "normalised-pixels", probe_samples: int = 20_000
    ) -> None:
        self.mask_ratio, self.reconstruct, self.fitted_on = mask_ratio, reconstruct, probe_samples
        self._probe: LinearProbe | None = None
        if not probe_samples:
            self.metric, self.direction, self.targets = "reconstruction_error", "min", None
            self.others = {}

    def losses(self, model: Model, batch: Batch) -> Losses:
        own = self._errors(model, batch)
        return Losses(own, own)

    def summary(self, model: Model, batch: Batch) -> Tensor:
        features, num_classes = model(batch["inputs"])
        return LinearProbe.summary(features, batch["target"], num_classes)

    def fit(self, summary: Tensor) -> None:
        self._probe = LinearProbe.fitted(summary)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        errors = self._errors(model, batch).double()
        right = errors.new_zeros(())
        if self.fitted_on:
            assert self._probe is not None, "fit() comes first"
            features, _ = model(batch["inputs"])
            right = (self._probe(features).argmax(1) == batch["target"]).sum().double()
        return torch.stack([errors.sum(), right, right.new_tensor(float(len(errors)))])

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        error, right, count = totals.tolist()
        found = {"loss": error / count, "reconstruction_error": error / count}
        return found | ({"probe_accuracy": 100 * right / count} if self.fitted_on else {})

    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        inputs = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
        return {
            "inputs": inputs,
            "target": torch.zeros(count, dtype=torch.int64),
            "draws": torch.arange(count),
        }

    def images(self, model: Model, batch: Batch, plain: Tensor) -> dict[str, bytes]:
        """A row of images; below it what is seen of them, and that with the rest filled in."""
        if self.reconstruct == "hog":  # directions of edges are no pixels
            return {}
        prediction, masked = model(batch["inputs"], batch["draws"], self.mask_ratio)
        seen, filled = filled_in(batch["inputs"], plain, prediction, masked, self.reconstruct)
        return {"reconstructions": image_grid(torch.cat([plain, seen, filled]), columns=len(plain))}

    def _errors(self, model: Model, batch: Batch) -> Tensor:
        """(b,) float32."""
        images = batch["inputs"]
        prediction, masked = model(images, batch["draws"], self.mask_ratio)
        target = targets_of(images.float(), masked.shape[1], self.reconstruct)  # (b, P, D)
        if prediction.shape != target.shape:
            found, wanted = prediction.shape[2], target.shape[2]
            raise ValueError(
                f"{found} numbers are predicted for a patch and task.reconstruct '{self.reconstruct}' has {wanted};"
                f" expected model.options.decoder_outputs: {wanted}"
            )
        wrong = (prediction.float() - target).square().mean(2)  # (b, P)
        return (wrong * masked).sum(1) / masked.sum(1)


def targets_of(images: Tensor, patches: int, what: Target) -> Tensor:
    """(b, P, D) float32: what is to be predicted of each of the P patches of square images (b, C, H, H)."""
    side = images.shape[2] // round(patches**0.5)
    if what == "hog":
        return hog(images, side)
    pixels = patchified(images, side)
    if what == "pixels":
        return pixels
    return (pixels - pixels.mean(2, keepdim=True)) / (pixels.var(2, keepdim=True) + EPSILON).sqrt()


def filled_in(
    inputs: Tensor, plain: Tensor, prediction: Tensor, masked: Tensor, what: Target
) -> tuple[Tensor, Tensor]:
    """(b, C, H, H) uint8 twice: images with their masked patches grey, and with the prediction in their place.

    A prediction of normalised pixels is given the mean and the variance that the patch has: they are not predicted.

    Args:
        inputs: (b, C, H, H), images as the network was shown them.
        plain: (b, C, H, H) uint8, the same for people.
        prediction: (b, P, D) of pixels, normalised or not.
        masked: (b, P) bool.
    """
    inputs, side = inputs.float(), inputs.shape[2] // round(masked.shape[1] ** 0.5)
    found = prediction.float()
    if what == "normalised-pixels":
        pixels = patchified(inputs, side)
        found = found * (pixels.var(2, keepdim=True) + EPSILON).sqrt() + pixels.mean(2, keepdim=True)
    over = (0, 2, 3)  # an input is a multiple of the plain image and a constant, by channel
    scale = plain.float().std(over) / inputs.std(over).clamp_min(EPSILON)
    zero = plain.float().mean(over) - scale * inputs.mean(over)
    channels, grid = inputs.shape[1], inputs.shape[2] // side
    tiles = found.unflatten(2, (side, side, channels)).unflatten(1, (grid, grid))  # (b, g, g, side, side, C)
    made = tiles.permute(0, 5, 1, 3, 2, 4).reshape(inputs.shape)
    made = (made * scale.view(1, -1, 1, 1) + zero.view(1, -1, 1, 1)).round().clamp(0, 255).to(torch.uint8)
    hidden = masked.view(-1, 1, grid, grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return torch.where(hidden, torch.full_like(plain, GREY), plain), torch.where(hidden, made, plain)


def patchified(images: Tensor, side: int) -> Tensor:
    """(b, C, H, H) -> (b, P, side * side * C): patches in row-major order, their pixels too, a pixel's channels
    together."""
    return (
        F.pixel_unshuffle(images, side)
        .flatten(2)
        .unflatten(1, (-1, side * side))
        .permute(0, 3, 2, 1)
        .flatten(2)
    )


def hog(images: Tensor, side: int) -> Tensor:
    """(b, P, C * cells * 9) float32: histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of the patches,
    as MaskFeat predicts them (Wei et al., CVPR 2022, sec. 3.2, https://arxiv.org/abs/2112.09133).

    Every channel has its own. A pixel's gradient (central differences, the border continued) votes with its length
    for one of 9 directions without sign; a cell of 8 x 8 pixels (or the patch, where it is no multiple of that)
    sums the votes, and its histogram is divided by its length.

    Args:
        images: (b, C, H, H).
        side: of a patch, in pixels.
    """
    channels, cell = images.shape[1], CELL if side % CELL == 0 else side
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    direction = torch.atan2(down, across) / torch.pi * BINS  # in [-9, 9]: half a turn is 9 bins
    nearest = direction.floor().long() % BINS
    votes = torch.hypot(across, down).unsqueeze(2) * F.one_hot(nearest, BINS).movedim(4, 2)  # (b, C, 9, H, H)
    summed = F.avg_pool2d(votes.flatten(1, 2), cell) * cell**2  # (b, 9 C, cells, cells)
    histograms = F.normalize(summed.unflatten(1, (channels, BINS)), dim=2).flatten(1, 2)
    return patchified(histograms, side // cell)


class LinearProbe:
    """A linear classifier by ridge regression on 0 and 1 for each class, features scaled to variance 1.

    It needs sums over samples alone, so that workers add theirs and nothing is kept of any sample.

    Args:
        weight: (d, K) float64.
        bias: (K,) float64.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, features: Tensor) -> Tensor:
        """(b, K) float64 from (b, d)."""
        return features.double() @ self.weight + self.bias

    @staticmethod
    def summary(features: Tensor, target: Tensor, num_classes: int) -> Tensor:
        """(1 + d + K, 1 + d) float64: Z^T X for X = [1, features] and Z = [X, a column of 0 and 1 for each class].

        Args:
            features: (b, d).
            target: (b,) int64.
            num_classes: K.
        """
        ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
        x = torch.cat([ones, features.double()], 1)
        return torch.cat([x, F.one_hot(target, num_classes).double()], 1).T @ x

    @classmethod
    def fitted(cls, summary: Tensor) -> LinearProbe:
        """The probe of the summed `summary` of all samples."""
        size = summary.shape[1]
        means = summary / summary[0, 0]  # of products
        mean, prior = means[0, 1:], means[size:, 0]  # (d,), (K,)
        covariance = means[1:size, 1:] - mean.outer(mean)  # (d, d)
        scale = covariance.diagonal().clamp_min(0).sqrt() + EPSILON
        correlation = covariance / scale.outer(scale)
        with_classes = (means[size:, 1:] - prior.outer(mean)) / scale  # (K, d)
        penalty = RIDGE * torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        weight = torch.linalg.solve(correlation + penalty, with_classes.T) / scale[:, None]
        return cls(weight, prior - mean @ weight)
