"""What every worker of a Ray Train group runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from raytrain_speedup.engine.local import PROGRESS_SECONDS
from raytrain_speedup.engine.reporter import Metrics, Reporter
from raytrain_speedup.engine.script_run import run_any
from raytrain_speedup.scaling.storage import folder_of
from raytrain_speedup.script import load_any_dict


class TrainReporter(Reporter):
    """Reports to Ray Train; rank 0 also pins its metrics to the board.

    Args:
        board: the driver's `Board`, or None where nobody watches.
    """

    def __init__(self, board: Any = None) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self._board = board if self.rank == 0 else None
        self._last_progress = 0.0

    def report(self, metrics: Metrics, checkpoint: Path | None = None) -> None:
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint.from_directory(checkpoint) if checkpoint is not None else None,
            delete_local_checkpoint_after_upload=True,
        )
        if self._board is not None:
            ray.get(self._board.put.remote("report", dict(metrics)))

    def progress(self, metrics: Metrics) -> None:
        now = time.monotonic()
        if self._board is not None and now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._board.put.remote("progress", dict(metrics))

    def image(self, name: str, epoch: int, png: bytes) -> None:
        if self._board is not None:
            self._board.put.remote("image", {"name": f"{name}-{epoch:04d}.png", "png": png})

    def latest(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        return folder_of(checkpoint) if checkpoint is not None else None

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"rank-{self.rank}-"))


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The training function; `config` holds the experiment as plain data, perhaps the board, and whether the
    test split is read (`test`)."""
    return run_any(
        load_any_dict(config["experiment"]),
        TrainReporter(config.get("board")),
        device=ray.train.torch.get_device(),
        test=config.get("test", True),
    )
