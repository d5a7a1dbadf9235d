"""What a run's folder holds at its end, to be compared with that of another run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the model that the run in this folder ended with."""
    return torch.load(max(folder.glob("checkpoint-*/model.pt")), weights_only=True)


def same_weights(one: Path, other: Path) -> bool:
    """Whether the runs in two folders ended with the same model, to the last bit."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
