"""The files of a checkpoint: each whole or not at all.

A checkpoint is a folder (`store.py` says where). Rank 0 writes what all ranks share (`run.pt`), every
rank what it alone knows (`rank-3.pt`: its random state, its loader's). Files are written beside their final name
and renamed, so a full disk or a kill in the middle leaves the previous checkpoint as it was. A storage that is
away for a moment is waited for (`outage.py`).

Training waits for a copy in memory alone (`snapshot`); the files are written beside it (`saver.py`), but on a CPU
(`loop.WRITES_IN_TURN`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from raytrain_speedup.engine.checkpoints.outage import outlast, reason_of
from raytrain_speedup.models.pretrained import UNREADABLE, why_unreadable
from raytrain_speedup.settings import RunFailed, UserError


class CheckpointFailed(RunFailed):
    """A checkpoint could not be written, and the one before is intact; or one could not be brought here."""


@dataclass(frozen=True)
class Checkpoint:
    """This rank's files of a checkpoint, yet to be written.

    Attributes:
        folder: where they go.
        files: their contents by name, which nobody changes any more (`snapshot`). `*.json` is written as JSON, all
            else by `torch.save`.
    """

    folder: Path
    files: Mapping[str, Any]

    def write(self) -> None:
        """Write the files.

        Raises:
            CheckpointFailed: if the disk is full, say; nothing half-written is left behind.
        """
        for name, content in self.files.items():
            save = save_json if name.endswith(".json") else save_tensors
            save(content, self.folder / name)


def snapshot(content: Any) -> Any:
    """A copy on the CPU of nested dicts and lists of tensors, which training no longer changes. Tensors that share
    their memory, as tied weights do, share it in the copy."""
    copies: dict[Any, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            place = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride()
            key = (*place, value.dtype) if value.numel() else id(value)
            if key not in copies:
                copies[key] = value.detach().to("cpu", copy=True)
            return copies[key]
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(copied, value))
        return value

    return copied(content)


def rank_file(rank: int) -> str:
    """Name of the file of what a rank alone knows."""
    return f"rank-{rank}.pt"


def is_rank_file(name: str) -> bool:
    """Whether a file has the name of a rank's own."""
    return re.fullmatch(r"rank-\d+\.pt", name) is not None


def read_shared(folder: Path, device: torch.device) -> dict[str, Any]:
    """What all ranks share; raises `UserError` naming a file that cannot be read."""
    return _load(folder / "run.pt", device)


def read_epoch(folder: Path) -> int:
    """The epoch in which it was taken; none of its weights are read. Raises as `read_shared`."""
    epoch: int = _load(folder / "run.pt", torch.device("cpu"), mmap=True)["epoch"]
    return epoch


def read_own(folder: Path, rank: int) -> dict[str, Any] | None:
    """What a rank alone knows, on the CPU; None if fewer ranks wrote the checkpoint."""
    path = folder / rank_file(rank)
    return _load(path, torch.device("cpu")) if path.is_file() else None


def save_tensors(content: Any, path: Path) -> None:
    """`torch.save`, whole or not at all; raises `CheckpointFailed`."""
    _save(path, lambda file: torch.save(content, file))


def save_json(content: Any, path: Path) -> None:
    """A JSON file, whole or not at all; raises `CheckpointFailed`."""
    _save(path, lambda file: file.write(json.dumps(content, indent=2).encode()))


def _load(path: Path, device: torch.device, *, mmap: bool = False) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except UNREADABLE as error:
        reason = why_unreadable(error)
        raise UserError(f"{path}: not a whole checkpoint ({reason}); expected one of this package") from error


def _save(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")

    def attempt() -> None:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    try:
        outlast(attempt, str(path))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointFailed(f"{path}: checkpoint not written ({reason_of(error)})") from error


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
