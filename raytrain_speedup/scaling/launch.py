"""`speedup train`: one run on as many Ray Train workers as the experiment asks for.

One worker on one machine does not pay for a worker group: Train's local mode runs the training function in
this process. Several workers run under a `TorchTrainer` that restarts them from the last checkpoint when one
is lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.local import Listener, LocalReporter, stop_at_interrupt
from raytrain_speedup.engine.run import run
from raytrain_speedup.scaling.cluster import connect
from raytrain_speedup.scaling.worker import Board, train_worker
from raytrain_speedup.settings import RunFailed, UserError


def launch(experiment: Experiment, folder: Path, listener: Listener) -> dict[str, Any]:
    """Train, and give the final figures.

    Args:
        experiment: what to do, and on how many workers.
        folder: the run's folder for checkpoints; a run found there is resumed. Several workers on several
            nodes need it on storage they all see.
        listener: gets every report and now and then the progress, in this process.

    Raises:
        UserError: for what a user can mend.
        Stopped: after a Ctrl-C, when the checkpoint is written (one worker).
    """
    if experiment.scaling.workers == 1:
        return _launch_here(experiment, folder, listener)
    return _launch_group(experiment, folder, listener)


def _launch_here(experiment: Experiment, folder: Path, listener: Listener) -> dict[str, Any]:
    reporter = LocalReporter(folder, listener)

    def train_here() -> dict[str, Any]:
        return run(experiment, reporter)

    trainer = TorchTrainer(
        train_here,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name=folder.name, storage_path=str(folder.parent.absolute())),
    )
    with stop_at_interrupt(reporter):
        return trainer.fit().return_value


def _launch_group(experiment: Experiment, folder: Path, listener: Listener) -> dict[str, Any]:
    connect(experiment.scaling)
    board = Board.remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"experiment": experiment.to_dict(), "board": board},
        scaling_config=scaling_config(experiment),
        run_config=run_config(experiment, folder),
    )
    with _listening(board, listener):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _failure(board) or RunFailed(f"the workers failed: {_reason(error)}") from error
    failure = _failure(board)
    if failure is not None:
        raise failure
    return result.return_value


def scaling_config(experiment: Experiment) -> ray.train.ScalingConfig:
    """The worker group of an experiment."""
    scaling = experiment.scaling
    resources = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    return ray.train.ScalingConfig(
        num_workers=scaling.workers, use_gpu=scaling.gpus_per_worker > 0, resources_per_worker=resources
    )


def run_config(experiment: Experiment, folder: Path, **more: Any) -> ray.train.RunConfig:
    """Storage and faults of an experiment; a run of the same name in the same place is resumed."""
    return ray.train.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent.absolute()),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        failure_config=ray.train.FailureConfig(
            max_failures=experiment.scaling.max_failures,
            # a group that cannot start is otherwise retried for ever
            controller_failure_limit=2,
        ),
        **more,
    )


@contextlib.contextmanager
def _listening(board: Any, listener: Listener) -> Iterator[None]:
    """Pass on what the workers pin to the board."""
    done = threading.Event()

    def listen() -> None:
        while not done.wait(0.25):
            _drain()

    def _drain() -> None:
        for kind, figures in ray.get(board.take.remote()):
            listener(kind, figures)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _drain()


def _failure(board: Any) -> UserError | None:
    failure = ray.get(board.failure.remote())
    if failure is None:
        return None
    message, exit_code = failure
    return (UserError if exit_code == UserError.exit_code else RunFailed)(message)


def _reason(error: ray.train.TrainingFailedError) -> str:
    """The first worker's own words, without the stack."""
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    return str(first).strip().splitlines()[-1]
