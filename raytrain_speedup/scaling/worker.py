"""What every worker of a Ray Train group runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
from ray.exceptions import RayError

from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint
from raytrain_speedup.engine.checkpoints.saver import Saver
from raytrain_speedup.engine.local import PROGRESS_SECONDS
from raytrain_speedup.engine.reporter import Decision, Metrics, Notice, Reporter
from raytrain_speedup.engine.script_run import run_any
from raytrain_speedup.scaling.board import BOARD_SECONDS, NodeTakenBack
from raytrain_speedup.scaling.cluster import drains_watched
from raytrain_speedup.scaling.storage import PathOrUri
from raytrain_speedup.scaling.uri_store import store_of
from raytrain_speedup.script import load_any_dict
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup")


class TrainReporter(Reporter):
    """Writes the run's checkpoints and reports to Ray Train; rank 0 also pins its metrics to the board.

    Checkpoints are not Ray's but this package's (`engine/checkpoints/store.py`): a process or another number of
    workers reads them. Every rank writes its own files beside its steps, and when all are there, rank 0 makes a
    checkpoint of them.

    Args:
        folder: the run's folder or URI, which all workers see.
        board: the driver's `Board`, or None where nobody watches.
    """

    def __init__(self, folder: PathOrUri, board: Any = None) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.watches = drains_watched() or board is not None
        self._stop = False
        self._board = board if self.rank == 0 else None
        self._last_progress = 0.0
        self._steps: float | int | str | bool | None = None  # of the run
        if self._board is not None:
            log.addHandler(_ToBoard(self))
        self._store = store_of(folder)
        found = None
        if self.rank == 0:
            newest = self._store.newest()
            self._store.clear()
            found = newest, self._store.next_number()
        # one looks, so that no storage that lags behind makes the others go on from another checkpoint
        self._newest, self._number = ray.train.collective.broadcast_from_rank_zero(found)
        self._saver = Saver()
        self._pin("begin", {"checkpoint": self._newest})

    def report(self, metrics: Metrics, checkpoint: Checkpoint | None = None) -> None:
        # First, as in `LocalReporter`: Ctrl-C may end this process between any two lines.
        self._pin("report", dict(metrics), wait=True)
        if checkpoint is not None:
            self._saver.start(functools.partial(self._save, checkpoint, self._number, self._steps))
            self._number += 1
        ray.train.report(dict(metrics))

    def _save(self, checkpoint: Checkpoint, number: int, steps: Any) -> None:
        checkpoint.write()
        self._store.hand_over(checkpoint.folder, number)
        if self.rank == 0:
            self._newest = self._store.commit(number, self.world)
            self._pin("checkpoint", {"name": self._newest, "steps": steps})

    def settle(self) -> None:
        self._saver.settle()
        self._newest = ray.train.collective.broadcast_from_rank_zero(self._newest)  # when all are here

    def close(self) -> None:
        self._saver.wait()
        self._store.close()

    def phase(self, name: str) -> None:
        self._pin("phase", {"name": name})

    def progress(self, metrics: Metrics) -> None:
        self._saver.check()
        self._steps = metrics.get("steps") if metrics.get("of") != "teacher" else None
        now = time.monotonic()
        if now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._pin("progress", dict(metrics))

    def agree(self, decision: Decision) -> Decision:
        """And all hear whether the user asked to stop."""
        told = decision, self._asked_to_stop()
        decision, self._stop = ray.train.collective.broadcast_from_rank_zero(told)
        return decision

    def should_stop(self) -> bool:
        return self._stop

    def _asked_to_stop(self) -> bool:
        if self._board is None:
            return False
        try:
            return ray.get(self._board.asked_to_stop.remote(), timeout=BOARD_SECONDS)
        except RayError:
            return False

    def notice(self) -> Notice | None:
        if not drains_watched():
            return None
        info = ray.train.get_preemption_info()  # what rank 0 was told
        if info is None:
            return None
        names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        nodes = tuple(names.get(node, node) for node in info.preempted_node_ids)
        return Notice(nodes, info.deadline_ms / 1000 if info.deadline_ms is not None else None)

    def leave(self, notice: Notice) -> None:
        """Ends the group, which Ray starts again elsewhere: what it would train until the node goes would be lost,
        and a node that comes for it would be asked for later.

        Raises:
            NodeTakenBack: always.
        """
        raise NodeTakenBack(str(notice))

    def image(self, name: str, epoch: int, png: bytes) -> None:
        self._pin("image", {"name": f"{name}-{epoch:04d}.png", "png": png})

    def _pin(self, kind: str, metrics: dict[str, Any], *, wait: bool = False) -> None:
        """Whatever becomes of the board, the training goes on."""
        if self._board is None:
            return
        try:
            pinned = self._board.put.remote(kind, metrics)
            if wait:
                ray.get(pinned, timeout=BOARD_SECONDS)
        except RayError:
            log.debug("the board does not answer", exc_info=True)

    def warn(self, text: str) -> None:
        """A warning for the user, who sees none of the workers' logs."""
        self._pin("warning", {"text": text})

    def has_checkpoint(self) -> bool:
        return self._newest is not None

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Path | None]:
        name = self._newest
        with contextlib.nullcontext() if name is None else self._store.fetched(name, self.rank) as folder:
            yield folder

    @property
    def last(self) -> str | None:
        self._saver.wait()
        newest = self._newest
        if self.rank:  # only rank 0 hears when one is there
            with contextlib.suppress(UserError):
                newest = self._store.newest()
        return self._store.path_of(newest) if newest is not None else None

    def new_folder(self) -> Path:
        self._saver.settle()
        return self._store.begin(self._number)


class _ToBoard(logging.Handler):
    """Passes warnings of this package on to the driver."""

    def __init__(self, reporter: TrainReporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.warn(record.getMessage())


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The training function; `config` holds the experiment as plain data, the run's `folder`, perhaps the board,
    and whether the test split is read (`test`)."""
    return run_any(
        load_any_dict(config["experiment"]),
        TrainReporter(config["folder"], config.get("board")),
        device=ray.train.torch.get_device(),
        test=config.get("test", True),
    ).to_dict()
