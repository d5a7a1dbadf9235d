"""What an image is known by, where sets of images are compared: features of a network that is not trained here.

FID takes them from an Inception network that was trained on ImageNet, to be had by a download. By default they come
from a convolutional network that nobody trained: embeddings by random weights find the faults of generated images
too, and are less partial where data are not ImageNet's (Naeem et al., ICML 2020, https://arxiv.org/abs/2002.09797).
They are the same in every run, so a distance of them ranks runs on one data set; it cannot be compared with
published FIDs. A classifier that was trained on the data set itself knows what matters in it, and needs no download
either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.models.pretrained import classifier_keys, load_whole, read_state_dict
from raytrain_speedup.optional import optional_library
from raytrain_speedup.settings import Settings, UserError

RANDOM, INCEPTION = "random", "inception"

KEY = "task.features"

WIDTHS = (32, 64, 64)
"""Channels of the random network's convolutions."""

SMALLEST = 2
"""Pixels at the side of a map that is still halved."""


class RandomFeatures(nn.Module):
    """A convolutional network with random weights, always the same ones.

    Convolutions of 3 x 3 with ReLU and He's initialisation (arXiv 1502.01852), between them means over 2 x 2
    pixels; the features are the means of every layer's channels over the image.

    Args:
        channels: of an image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.num_features = sum(WIDTHS)
        for layer, (before, width) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
            scale = (2 / (9 * before)) ** 0.5
            self.register_buffer(f"filters{layer}", scale * torch.randn(width, before, 3, 3, generator=rng))

    def forward(self, images: Tensor) -> Tensor:
        """(b, d) float32 from images (b, C, H, W) in [-1, 1]."""
        found, maps = [], images.float()
        for layer in range(len(WIDTHS)):
            maps = F.conv2d(maps, self.get_buffer(f"filters{layer}"), padding=1).relu()
            found.append(maps.mean((2, 3)))
            maps = F.avg_pool2d(maps, 2) if min(maps.shape[2:]) >= SMALLEST else maps
        return torch.cat(found, 1)


class FeatureSettings(Settings):
    """Whose features two sets of images are compared by."""

    network: str = Field(
        RANDOM,
        min_length=1,
        description="random (a convolutional network with fixed random weights, nothing to fetch), inception "
        "(FID's own, by torch-fidelity), or a classifier, as model.name",
    )
    weights: Path | None = Field(
        None, description="the classifier's file, such as a run's model.pt; of inception torch-fidelity's"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="the classifier's, as model.options where it was trained"
    )
    mean: tuple[float, ...] = Field((0.5,), min_length=1, description="data.mean where it was trained")
    std: tuple[float, ...] = Field((0.5,), min_length=1, description="data.std where it was trained")

    @model_validator(mode="after")
    def _has_weights(self) -> FeatureSettings:
        if (self.network == RANDOM) != (self.weights is None):
            wanted = "no weights" if self.network == RANDOM else "the path of its weights"
            raise ValueError(f"weights: {self.weights} is not allowed; expected {wanted} for {self.network}")
        return self


def build_features(settings: FeatureSettings, shape: tuple[int, ...]) -> nn.Module:
    """A network that gives (b, d) float32 features of images (b, C, H, W) in [-1, 1], on the CPU.

    Args:
        settings: which network.
        shape: of an image, (C, H, W).

    Raises:
        UserError: if its weights cannot be read, or are of another network or another kind of image.
    """
    if settings.network == RANDOM:
        return RandomFeatures(shape[0])
    if settings.weights is None:
        raise ValueError(f"{settings.network} without weights")
    if settings.network == INCEPTION:
        return InceptionFeatures(settings.weights)
    return ClassifierFeatures(settings, settings.weights, shape)


class ClassifierFeatures(nn.Module):
    """What a classifier of this package knows of an image before it decides: the inputs of its last linear layer.

    Args:
        settings: the classifier.
        weights: its file.
        shape: of an image, (C, H, W).

    Raises:
        UserError: if the file holds another network, or one for other images; if nothing linear decides.
    """

    def __init__(self, settings: FeatureSettings, weights: Path, shape: tuple[int, ...]) -> None:
        super().__init__()
        classes = len(list(read_state_dict(weights, f"{KEY}.weights: ").values())[-1])
        named = ModelSettings(name=settings.network, options=settings.options)
        try:
            with torch.random.fork_rng(devices=[]):  # fresh weights leave the run's own draws alone
                network = build_model(named, num_classes=classes, in_channels=shape[0], image_size=shape[-1])
            load_whole(network, weights)
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from error
        deciding = [key.rpartition(".")[0] for key in classifier_keys(network, classes)]
        if not deciding or not isinstance(network.get_submodule(deciding[-1]), nn.Linear):
            raise UserError(
                f"{KEY}.network: {settings.network} has no linear classifier; expected another one"
            )
        network.get_submodule(deciding[-1]).register_forward_pre_hook(self._note)
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(settings.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).view(-1, 1, 1))
        self._noted: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(b, d) float32 from images (b, C, H, W) in [-1, 1]."""
        self.network((images.float() / 2 + 0.5 - self.get_buffer("mean")) / self.get_buffer("std"))
        assert self._noted is not None
        return self._noted.flatten(1)

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._noted = inputs[0].float()


class InceptionFeatures(nn.Module):
    """FID's features, (b, 2048): torch-fidelity's port of the TensorFlow network, on images rounded to 8 bits.

    Args:
        weights: torch-fidelity's file of its weights (weights-inception-2015-12-05-6726825d.pth).

    Raises:
        UserError: if torch-fidelity is not installed, or the file is none of that network.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        where = "torch_fidelity.feature_extractor_inceptionv3"
        library = optional_library(where, key=f"{KEY}.network", extra=None)
        read_state_dict(
            weights, f"{KEY}.weights: "
        )  # refuses what runs code when it is loaded; the library does not
        try:
            with torch.random.fork_rng(devices=[]):
                build = library.FeatureExtractorInceptionV3
                self.network = build("inception-v3-compat", ["2048"], str(weights))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{KEY}.weights: {weights} is not FID's Inception network") from error

    def forward(self, images: Tensor) -> Tensor:
        """(b, 2048) float32 from images (b, C, H, W) in [-1, 1], of one or three channels."""
        bytes_of = (127.5 * images.float() + 127.5).round().clamp(0, 255).to(torch.uint8)
        found: Tensor = self.network(bytes_of.expand(-1, 3, -1, -1))[0]
        return found
