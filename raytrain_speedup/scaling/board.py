"""What passes between a worker group and the process that started it.

Ray Train's controller and this board are processes of their own; they unpickle what is in this file, so it
imports nothing that takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain_speedup.settings import Stalled, UserError

BOARD_SECONDS = 30.0
"""Who reports or listens waits so long for the board; it is started again where it was killed."""


class Board:
    """The notice board of a run, a Ray actor: callbacks of the controller cannot draw on the user's terminal."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, dict[str, Any]]] = []

    def put(self, kind: str, metrics: dict[str, Any]) -> None:
        self._notes.append((kind, metrics))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """What was put there since the last call."""
        notes, self._notes = self._notes, []
        return notes


def new_board() -> Any:
    """A handle of a new `Board`, on this process's node: elsewhere it would be lost with a node that runs survive.

    Ray starts it again if its process dies, and what is sent to it meanwhile waits.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Board)
    return actor.remote()


class EndAtMistake(UserCallback):
    """Ends a run at once whose worker raised a `UserError`: no restart mends it.

    Ray Train restarts a group whatever a worker raised, but it never retries an error of a callback; that one
    travels to the driver as it is.
    """

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)  # Ray wraps it to carry the worker's traceback
            if isinstance(cause, UserError) and not isinstance(cause, Stalled):
                raise cause
