"""Runs of a second or less that the engine's tests share: a part of the digits, and tiny networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.reporter import Figures
from raytrain_speedup.engine.run import run

CPU = torch.device("cpu")

VIT = {  # no batch norm, so its numbers do not depend on how a batch is cut; dropout where asked for
    "model.name": "timm/vit_tiny_patch16_224",
    "model.options": {"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2},
}


def tiny(overrides: Mapping[str, Any] | None = None, **train: Any) -> Experiment:
    """230 digits of 8 x 8 pixels on ResNet-8, 3 epochs of 4 steps; keywords are keys of `train`."""
    keys = {
        "pruning.method": "none",
        "data.image_size": 8,
        "data.val_share": 0.84,
        "train.epochs": 3,
        "train.batch_size": 64,
        "train.eval_every": 0,
        "train.threads": 1,
    }
    return load_experiment(
        "digits", keys | {f"train.{key}": value for key, value in train.items()} | dict(overrides or {})
    )


class Diary(LocalReporter):
    """Remembers what was reported, and asks to stop after so many steps."""

    def __init__(self, folder: Path, *, stop_after: int | None = None) -> None:
        super().__init__(folder, self._note)
        self.reports: list[dict[str, Any]] = []
        self.steps = 0
        self._stop_after = stop_after

    def _note(self, kind: str, figures: Figures) -> None:
        if kind == "report":
            self.reports.append(dict(figures))

    def progress(self, figures: Figures) -> None:
        self.steps += 1
        self.stop_requested = self.steps == self._stop_after

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The reports of whole epochs."""
        return [figures for figures in self.reports if "train_loss" in figures]


def trained(experiment: Experiment, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Diary]:
    """Final figures, evaluated weights and reports of a run in `folder`."""
    diary = Diary(folder)
    figures = run(experiment, diary, device=CPU)
    return figures, weights(diary), diary


def weights(reporter: LocalReporter) -> dict[str, Tensor]:
    """The evaluated weights of a finished run."""
    latest = reporter.latest()
    assert latest is not None
    return torch.load(latest / "model.pt", weights_only=True)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
