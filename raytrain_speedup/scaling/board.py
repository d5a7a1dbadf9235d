"""What passes between a worker group and the process that started it.

Ray Train's controller and this board are processes of their own; they unpickle what is in this file, so it
imports nothing that takes long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain_speedup.settings import Stalled, UserError

BOARD_SECONDS = 30.0
"""Who reports or listens waits so long for the board; it is started again where it was killed."""


class Board:
    """The notice board of a run, a Ray actor: callbacks of the controller cannot draw on the user's terminal."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, dict[str, Any]]] = []
        self._stop = False

    def put(self, kind: str, metrics: dict[str, Any]) -> None:
        self._notes.append((kind, metrics))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """What was put there since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def ask_to_stop(self) -> None:
        """The user wishes that the workers save and end."""
        self._stop = True

    def asked_to_stop(self) -> bool:
        """Whether the user does."""
        return self._stop


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


class NodeTakenBack(RayActorError):
    """Workers leave a node that is soon taken away, their checkpoint being written.

    To Ray Train it is a worker that a node took with it when it was taken back: the group is started again without
    counting it as one of `scaling.max_failures`. Any other error of a worker would count.

    Args:
        text: which node, for people.
    """

    def __init__(self, text: str) -> None:
        super().__init__(error_msg=text, preempted=True)


class TellFailures(UserCallback):
    """Pins to the board why workers ended; Ray Train starts them again without a word to the user.

    Args:
        board: of the driver.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self._board.put.remote("failure", {"cause": cause_of(worker_exceptions, run_context)})


class Group(Protocol):
    """What a trainer and Ray Train's context of a run both say of the workers."""

    scaling_config: Any
    backend_config: Any


_WAITED = re.compile(r"Timed out waiting|CollectiveTimeoutError")
"""What gloo, NCCL's store and Ray Train say when others do not come."""

_LEFT_ALONE = re.compile(r"reset by peer|closed by peer")
"""What gloo says when another is gone, of which Ray hears before it misses a node."""


def cause_of(errors: Mapping[int, Exception], group: Group) -> str:
    """In a line, why workers ended. Those that died come first, then an error of a worker's own, and a wait for
    others last: what the others say follows from that.

    Args:
        errors: by rank, as Ray Train has them.
        group: the workers.
    """
    dead = {}
    for rank, error in sorted(errors.items()):
        cause = getattr(error, "health_check_failure", error)
        if isinstance(cause, NodeTakenBack):
            return str(cause)
        if isinstance(cause, RayActorError):
            dead[rank] = cause
    if dead:
        whose = f"worker{'s' if len(dead) > 1 else ''} {', '.join(map(str, dead))}"
        return end_of(dead.values(), whose)
    rank, said = min(
        ((rank, str(error).strip() or type(error).__name__) for rank, error in errors.items()),
        key=lambda one: (bool(_LEFT_ALONE.search(one[1])), bool(_WAITED.search(one[1])), one[0]),
    )
    if _WAITED.search(said):
        workers, seconds = group.scaling_config.num_workers, group.backend_config.timeout_s
        silent = [other for other in range(workers if isinstance(workers, int) else 0) if other not in errors]
        named = ", ".join(f"worker {other}" for other in silent) or "a worker that has answered since"
        return f"worker {rank} waited {seconds} s for the others (scaling.timeout); not heard of meanwhile: {named}"
    if _LEFT_ALONE.search(said):
        return f"worker {rank} failed: a worker that it exchanges gradients with is gone"
    return f"worker {rank} failed: {said.splitlines()[-1]}"


def end_of(deaths: Iterable[RayActorError], whose: str) -> str:
    """In a line, how processes ended, those of `whose`."""
    deaths = list(deaths)
    if any(error.preempted for error in deaths):
        return f"the node of {whose} was taken back by the cloud"
    lost = any("node has died" in str(error) or "node was" in str(error) for error in deaths)
    return f"the node of {whose} was lost" if lost else f"the process of {whose} died"
