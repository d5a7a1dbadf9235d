"""What every worker of a Ray Train group runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from raytrain_speedup.config import load_experiment_dict
from raytrain_speedup.engine.local import PROGRESS_SECONDS
from raytrain_speedup.engine.reporter import Figures, Reporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.settings import UserError


@ray.remote(num_cpus=0)
class Board:
    """The notice board between a worker group and the process that started it.

    Ray Train's controller is a process of its own, so its callbacks cannot draw on the user's terminal; and
    it restarts a group whatever the reason of its failure, so a mistake of the user's is pinned here for the
    next group to see.
    """

    def __init__(self) -> None:
        self._notes: list[tuple[str, dict[str, Any]]] = []
        self._failure: tuple[str, int] | None = None

    def put(self, kind: str, figures: dict[str, Any]) -> None:
        self._notes.append((kind, figures))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        notes, self._notes = self._notes, []
        return notes

    def fail(self, message: str, exit_code: int) -> None:
        self._failure = self._failure or (message, exit_code)

    def failure(self) -> tuple[str, int] | None:
        return self._failure


class TrainReporter(Reporter):
    """Reports to Ray Train; rank 0 also pins its figures to the board.

    Args:
        board: the driver's `Board`, or None where nobody watches.
    """

    def __init__(self, board: Any = None) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self._board = board if self.rank == 0 else None
        self._last_progress = 0.0

    def report(self, figures: Figures, checkpoint: Path | None = None) -> None:
        ray.train.report(
            dict(figures),
            checkpoint=ray.train.Checkpoint.from_directory(checkpoint) if checkpoint is not None else None,
            delete_local_checkpoint_after_upload=True,
        )
        if self._board is not None:
            ray.get(self._board.put.remote("report", dict(figures)))

    def progress(self, figures: Figures) -> None:
        now = time.monotonic()
        if self._board is not None and now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._board.put.remote("progress", dict(figures))

    def latest(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        return Path(checkpoint.to_directory()) if checkpoint is not None else None

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"rank-{self.rank}-"))


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """The training function; `config` holds the experiment as plain data and perhaps the board."""
    board = config.get("board")
    if board is not None and ray.get(board.failure.remote()) is not None:
        return None  # the group before failed for a reason no restart mends
    try:
        return run(
            load_experiment_dict(config["experiment"]),
            TrainReporter(board),
            device=ray.train.torch.get_device(),
        )
    except UserError as error:
        if board is not None:
            ray.get(board.fail.remote(str(error), error.exit_code))
        raise
