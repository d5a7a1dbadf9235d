"""A group of Ray Train workers: its size, its storage, its faults, and how its errors are reported."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import signal
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import ray
import ray.train
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.scaling.board import EndAtMistake, TellFailures, cause_of
from raytrain_speedup.scaling.cluster import ATTEMPTS, set_ray_environment
from raytrain_speedup.scaling.storage import PathOrUri, inside, parent_and_name
from raytrain_speedup.scaling.uri_store import store_of
from raytrain_speedup.scaling.worker import train_worker
from raytrain_speedup.script import AnyExperiment
from raytrain_speedup.settings import RunFailed, UserError

log = logging.getLogger("raytrain_speedup")


def worker_group(
    experiment: AnyExperiment,
    folder: PathOrUri,
    *,
    board: Any = None,
    callbacks: tuple[UserCallback, ...] = (),
    test: bool = True,
) -> TorchTrainer:
    """The worker group of an experiment; a run found in `folder` is resumed.

    Args:
        experiment: what to do, and on how many workers.
        folder: for checkpoints, on storage that all nodes see: a path or a URI.
        board: a `Board` for the metrics, or None.
        callbacks: told of every report, in the controller's process.
        test: whether the test split is read at the end.
    """
    parent, name = parent_and_name(folder)
    store_of(folder).create()
    config = {
        "experiment": experiment.shipped(),
        "folder": inside(parent, name),
        "board": board,
        "test": test,
    }
    if board is not None:
        callbacks = (*callbacks, TellFailures(board))
    trainer = trainer_of(train_worker, experiment.scaling, name=name, config=config, callbacks=callbacks)
    if board is not None:
        trainer.ask = functools.partial(_ask_to_stop, board)
    return trainer


def _ask_to_stop(board: Any) -> None:
    log.warning("the workers save and stop within some seconds; another Ctrl-C ends them at once")
    board.ask_to_stop.remote()


class _Group(TorchTrainer):
    """Asks its workers to stop at a Ctrl-C. The second one ends them, as Ray does at the first.

    Attributes:
        ask: what asks them; None: Ray's own way.
    """

    ask: Callable[[], None] | None = None

    def _register_sigint_handler(self, controller: Any) -> None:
        super()._register_sigint_handler(controller)  # there is no public way
        if self.ask is None:
            return
        at_once, ask = signal.getsignal(signal.SIGINT), self.ask

        def first(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, at_once)
            ask()

        signal.signal(signal.SIGINT, first)


def trainer_of(
    function: Callable[..., Any],
    scaling: ScalingSettings,
    *,
    name: str,
    config: dict[str, Any] | None = None,
    callbacks: tuple[UserCallback, ...] = (),
    placement: Literal["PACK", "SPREAD"] = "PACK",
) -> _Group:
    """The workers that run a function, given `config` where there is one.

    Args:
        placement: SPREAD: on as many nodes as there are.
    """
    set_ray_environment(scaling)
    resources = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    return _Group(
        function,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=math.ceil(scaling.timeout)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers,
            elastic_resize_monitor_interval_s=scaling.resize_seconds,
            use_gpu=scaling.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=placement,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=tempfile.mkdtemp(prefix="speedup-ray-"),  # Ray is told of no checkpoint
            failure_config=ray.train.FailureConfig(
                max_failures=scaling.max_failures,
                max_preemption_failures=-1,  # a cloud that takes nodes back is no fault
                controller_failure_limit=ATTEMPTS - 1,  # a group that cannot start is else retried for ever
            ),
            callbacks=[*callbacks, EndAtMistake()],
        ),
    )


def fit_group(trainer: TorchTrainer) -> ray.train.Result:
    """Run a worker group; the result's `return_value` is what rank 0 returned. Ray's own folder is removed.

    Raises:
        UserError: the worker's own, or naming the reason why there is no result.
    """
    try:
        return trainer.fit()
    except ray.train.ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, UserError):
            raise cause from None
        scaling, have = trainer.scaling_config, ray.cluster_resources()
        raise RunFailed(
            f"scaling.workers: {scaling.num_workers} workers with {scaling.resources_per_worker} each could "
            f"not be started; the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs. "
            f"Ray says: {_last_line(cause)}"
        ) from error
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        raise RunFailed(
            f"{cause_of(failures, trainer)}; and again after every restart (scaling.max_failures)"
        ) from error
    finally:
        shutil.rmtree(trainer.run_config.storage_path, ignore_errors=True)


def _last_line(error: Exception) -> str:
    """The error's own words, without the stacks that Ray puts in front."""
    return str(error).strip().splitlines()[-1]
