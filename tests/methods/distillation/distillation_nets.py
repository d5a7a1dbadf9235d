"""Tiny networks for the tests of distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import SYNTHESIZERS, Synthesizer
from raytrain_speedup.methods.distillation.base import RealImages

SMALL: dict[str, Any] = {
    "batch_size": 8,
    "warmup": 0,
    "augment": {"crop": 1, "flip": True},
}
"""Settings that every method takes, small enough for a test."""
SMALL_GENERATOR: dict[str, Any] = {"width": 4, "latent": 8}
SMALL_METHODS: dict[str, dict[str, Any]] = {
    "fastdfkd": SMALL | SMALL_GENERATOR | {"steps": 2},
    "dafl": SMALL | SMALL_GENERATOR | {"batches": 2},
    "zskt": SMALL | SMALL_GENERATOR,
    "dfad": SMALL | SMALL_GENERATOR | {"batches": 2},
    "dfq": SMALL | SMALL_GENERATOR | {"batches": 2},
    "deepinversion": SMALL | {"steps": 3, "adv": 1.0},
    "cmi": SMALL | SMALL_GENERATOR | {"steps": 3, "bank": 12, "embedding": 8},
    "noise": SMALL,
    "real": SMALL,
}

TRAINING_IMAGES = torch.arange(64, dtype=torch.uint8).repeat(20, 1).view(20, 1, 8, 8)
TRAINING_IMAGES = TRAINING_IMAGES + torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
"""Twenty images that differ: the first pixel tells which one it is."""
REAL = RealImages(len(TRAINING_IMAGES), lambda positions: TRAINING_IMAGES[positions])


def classifier(width: int = 4, *, classes: int = 3, norm: bool = True, seed: int = 0) -> nn.Sequential:
    """Two convolutions and a linear layer for 1 x 8 x 8 images; its BN layers have seen some data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                *[nn.BatchNorm2d(outputs)] * norm,
                nn.ReLU(),
            ]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))
        for _ in range(3):
            network(torch.randn(16, 1, 8, 8))
    return network


class Segmenter(nn.Module):
    """Per-pixel classes of 1 x 8 x 8 images in a dict, as torchvision's segmentation networks give them."""

    def __init__(self, width: int = 4, *, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            self.head = nn.Conv2d(width, classes, 1)
            self.body(torch.randn(16, 1, 8, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.body(x))}


def build(
    method: str,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    *,
    seed: int = 0,
    image_size: int | tuple[int, int] = 8,
    real: RealImages | None = REAL,
    **settings: Any,
) -> Synthesizer:
    """A small synthesizer of the named method for images of one channel and three classes."""
    return SYNTHESIZERS[method](**SMALL_METHODS[method] | settings).build(
        classifier() if teacher is None else teacher,
        classifier(2, seed=1) if student is None else student,
        num_classes=3,
        image_size=image_size,
        channels=1,
        seed=seed,
        device="cpu",
        normalise=([0.5], [0.25]),
        real=real,
    )
