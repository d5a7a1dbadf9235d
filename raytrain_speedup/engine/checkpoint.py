"""Checkpoints: whole or not at all.

A checkpoint is a folder. Rank 0 writes what all ranks share (`run.pt`), every rank its own random state
(`rank-3.pt`). Files are written beside their final name and renamed, so a full disk or a kill in the middle
leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raytrain_speedup.settings import RunFailed


class CheckpointFailed(RunFailed):
    """A checkpoint could not be written; the one before is intact."""


def write_checkpoint(folder: Path, shared: Mapping[str, Any] | None, *, rank: int) -> None:
    """Write this rank's part of a checkpoint; `shared` is the common part, given on rank 0.

    Raises:
        CheckpointFailed: if the disk is full, say; nothing half-written is left behind.
    """
    files: dict[str, Any] = {f"rank-{rank}.pt": {"random": random_state()}}
    if shared is not None:
        files["run.pt"] = dict(shared)
    for name, content in files.items():
        _save(content, folder / name)


def read_checkpoint(
    folder: Path, *, rank: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(common part, this rank's random state or None if fewer ranks wrote the checkpoint)."""
    shared = torch.load(folder / "run.pt", map_location=device, weights_only=True)
    own = folder / f"rank-{rank}.pt"
    state = torch.load(own, map_location="cpu", weights_only=True)["random"] if own.is_file() else None
    return shared, state


def _save(content: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointFailed(f"{path}: checkpoint not written ({reason})") from error


def random_state() -> dict[str, Any]:
    """The state of torch's global generators, which dropout and stochastic depth draw from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Take up a state of `random_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
