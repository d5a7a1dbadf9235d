"""Ray tasks behind `concurrent.futures`: what runs in the processes of one machine may run on all of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import ray
from ray.exceptions import RayTaskError


class RayTasks(Executor):
    """Runs calls as Ray tasks of one CPU each, on whichever nodes have one; a node that is lost costs a repetition.

    Args:
        initializer: called before each call, in the process of the call.
    """

    def __init__(self, initializer: Callable[[], None] | None = None) -> None:
        self._initializer = initializer
        self._call = ray.remote(num_cpus=1)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As an executor's: an exception of `fn` comes as itself, not within one of Ray's."""
        answer: Future[Any] = Future()
        ref = self._call.remote(self._initializer, fn, args, kwargs)
        ref.future().add_done_callback(lambda done: _hand_on(done, answer))
        return answer


def _call(
    initializer: Callable[[], None] | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if initializer is not None:
        initializer()
    return fn(*args, **kwargs)


def _hand_on(done: Future[Any], answer: Future[Any]) -> None:
    if answer.cancelled():
        return
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error.cause if isinstance(error, RayTaskError) else error)
