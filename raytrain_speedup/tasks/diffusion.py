"""Denoising diffusion: find the noise in an image, told how much there is; judged by images made from noise alone.

DDPM (Ho et al., NeurIPS 2020, https://arxiv.org/abs/2006.11239): the simple loss of eq. 14 on diffusers' schedules,
and DDIM (Song et al., ICLR 2021, https://arxiv.org/abs/2010.02502) to sample in few steps. The loss of a sample is
drawn: time step and noise decide more of it than the image does. So samples are compared within bins of the time
step (`Losses.strata`), and a pruner may average over visits (`pruning.score_momentum`). InfoBatch (ICLR 2024)
trains a latent diffusion model of FFHQ at 27 % less cost and equal FID.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raytrain_speedup import randomness
from raytrain_speedup.data.batch import Batch
from raytrain_speedup.models.unet import diffusers_class
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, Task, TaskSettings
from raytrain_speedup.tasks.features import FeatureSettings, build_features
from raytrain_speedup.tasks.frechet import feature_moments, frechet_distance
from raytrain_speedup.tasks.images import image_grid

Schedule = Literal["linear", "squaredcos_cap_v2"]

KEY = "task.kind: diffusion"

TIMESTEP, RADIUS, ANGLE, START_RADIUS, START_ANGLE = range(5)
"""Streams of what is drawn for a sample: the time step, its noise, and the noise that an image is made from."""

COLUMNS = 8
"""Of the picture."""


class DiffusionSettings(TaskSettings):
    kind: Literal["diffusion"] = "diffusion"
    timesteps: int = Field(1000, ge=2, le=100_000, description="steps T from an image to noise")
    beta_schedule: Schedule = Field(
        "squaredcos_cap_v2",
        description="how noise grows: linear (DDPM's, from 1e-4 to .02) or squaredcos_cap_v2 (the cosine of "
        "improved DDPM)",
    )
    timestep_bins: int = Field(
        20,
        ge=1,
        le=1000,
        description="bins of the time step, of equal width, in which pruning compares losses",
    )
    generated: int = Field(
        1000,
        ge=0,
        description="images made for an evaluation, one at most for each image of the split; 0: none are, and the "
        "denoising error ranks runs",
    )
    sampling_steps: int = Field(20, ge=1, description="steps of DDIM by which an image is made")
    features: FeatureSettings = Field(
        default_factory=FeatureSettings, description="whose features the Fréchet distance compares"
    )

    @model_validator(mode="after")
    def _takes_no_step_twice(self) -> DiffusionSettings:
        if self.sampling_steps > self.timesteps:
            raise ValueError(
                f"sampling_steps: {self.sampling_steps} is not allowed; expected at most timesteps "
                f"({self.timesteps})"
            )
        return self

    def build(self) -> Task:
        return Diffusion(**self.model_dump(exclude={"kind", "features"}), features=self.features)


class Diffusion(Task):
    """A sample's loss is the mean squared error of the noise that is found in it, at a time step that is drawn anew
    in every epoch; in evaluations time steps and noise are always alike. Inputs lie in [-1, 1].

    The network is called with noisy images (b, C, H, W) and time steps (b,) int64, and answers with the noise, or,
    as diffusers' networks do, with an object whose `sample` it is.

    Args:
        timesteps: T.
        beta_schedule: how noise grows.
        timestep_bins: of equal width, in which scores are compared.
        generated: images that are made for an evaluation at most; without any, `denoising_error` ranks runs.
        sampling_steps: of DDIM.
        features: of whose features the images are compared; by default those of random weights.

    Raises:
        UserError: by whatever needs a schedule, where diffusers is not installed; by `example`, where a network of
            `features` does not fit the images.
    """

    draws = True
    shown = 16
    normalisation = (0.5, 0.5)
    metric = "frechet_distance"
    direction: Direction = "min"
    others: Mapping[str, Direction] = {"denoising_error": "min"}

    def __init__(
        self,
        timesteps: int = 1000,
        beta_schedule: Schedule = "squaredcos_cap_v2",
        timestep_bins: int = 20,
        generated: int = 1000,
        sampling_steps: int = 20,
        features: FeatureSettings | None = None,
    ) -> None:
        self.timesteps, self.beta_schedule, self.bins = timesteps, beta_schedule, timestep_bins
        self.generated, self.sampling_steps = generated, sampling_steps
        self._known_by = features or FeatureSettings()
        self._network: nn.Module | None = None
        self._tables: dict[torch.device, Tensor] = {}
        if not generated:
            self.metric, self.others = "denoising_error", {}

    def losses(self, model: Model, batch: Batch) -> Losses:
        own, timesteps = self._errors(model, batch)
        return Losses(own, own, strata=timesteps * self.bins // self.timesteps)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        """Errors, their number, and the moments of real and of generated images."""
        errors = self._errors(model, batch)[0].double()
        known = [torch.stack([errors.sum(), errors.new_tensor(float(len(errors)))])]
        if self.generated:
            images = batch["inputs"]
            features = self._features_of(images)
            chosen = batch["draws"][batch["index"] < self.generated]
            made = self.sampled(model, chosen, images.shape[1:])
            known += [feature_moments(features(images)).flatten(), feature_moments(features(made)).flatten()]
        return torch.cat(known)

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        error, count = totals[:2].tolist()
        found = {"loss": error / count, "denoising_error": error / count}
        if self.generated:
            real, made = totals[2:].cpu().chunk(2)
            side = round(len(real) ** 0.5)
            found["frechet_distance"] = frechet_distance(real.view(side, side), made.view(side, side))
        return found

    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        inputs = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
        if self.generated:
            self._features_of(inputs)  # what does not fit is said before anything is trained
        return {"inputs": inputs, "draws": torch.arange(count)}

    def images(self, model: Model, batch: Batch, plain: Tensor) -> dict[str, bytes]:
        """Images made from noise, the same noise in every evaluation."""
        made = self.sampled(model, batch["draws"], batch["inputs"].shape[1:])
        return {"samples": image_grid((127.5 * made + 127.5).round().to(torch.uint8), columns=COLUMNS)}

    def sampled(self, model: Model, draws: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Images (b, C, H, W) float32 in [-1, 1] of `shape` (C, H, W), made from the noise of the keys `draws`
        (b,)."""
        scheduler = self._scheduler("DDIMScheduler")
        scheduler.set_timesteps(self.sampling_steps)
        images = gaussian(draws, shape, (START_RADIUS, START_ANGLE))
        if not len(draws):
            return images
        for timestep in scheduler.timesteps:
            noise = self._noise_in(model, images, timestep.to(images.device).expand(len(images)))
            images = scheduler.step(noise, timestep, images).prev_sample
        return images.clamp(-1, 1)

    def _errors(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b,) float32, and the time steps (b,) int64 in [0, T)."""
        images, draws = batch["inputs"].float(), batch["draws"]
        random = randomness.bits(draws, seed=0, epoch=0, streams=(TIMESTEP,))[0]
        timesteps = randomness.below(random, self.timesteps)
        noise = gaussian(draws, images.shape[1:], (RADIUS, ANGLE))
        kept = self._alphas(images.device)[timesteps].view(-1, 1, 1, 1)  # of the image's variance
        noisy = kept.sqrt() * images + (1 - kept).sqrt() * noise
        found = self._noise_in(model, noisy, timesteps)
        return (found - noise).square().mean((1, 2, 3)), timesteps

    def _noise_in(self, model: Model, noisy: Tensor, timesteps: Tensor) -> Tensor:
        answer: Any = model(noisy, timesteps)
        found: Tensor = answer if isinstance(answer, Tensor) else answer.sample
        return found.float()

    def _alphas(self, device: torch.device) -> Tensor:
        """(T,) float32, the product of 1 - beta up to each time step (eq. 4); kept, so that a step sends nothing to
        the device."""
        if device not in self._tables:
            self._tables[device] = self._scheduler("DDPMScheduler").alphas_cumprod.to(device)
        return self._tables[device]

    def _scheduler(self, name: str) -> Any:
        """diffusers' scheduler of that name."""
        scheduler = diffusers_class(name, KEY)
        return scheduler(num_train_timesteps=self.timesteps, beta_schedule=self.beta_schedule)

    def _features_of(self, images: Tensor) -> nn.Module:
        if self._network is None:
            self._network = build_features(self._known_by, tuple(images.shape[1:]))
        return self._network.to(images.device)


def gaussian(draws: Tensor, shape: tuple[int, ...], streams: tuple[int, int]) -> Tensor:
    """Normal numbers (b, *shape) float32, a function of each key (b,) alone, on its device (Box and Muller 1958).

    Args:
        draws: (b,) int64 keys, as in a batch.
        shape: of what is drawn for each.
        streams: two that nothing else is drawn from.
    """
    places = torch.arange(torch.Size(shape).numel(), device=draws.device)
    keys = randomness.words(draws, seed=0, epoch=0, streams=streams[:1])[
        0
    ]  # far apart, whatever the draws are
    bits = randomness.bits(keys[:, None] + places, seed=0, epoch=0, streams=streams)
    radius, turn = randomness.unit(bits[0]), randomness.unit(bits[1])
    normal = (-2 * (1 - radius).log()).sqrt() * (2 * torch.pi * turn).cos()
    return normal.view(len(draws), *shape)
