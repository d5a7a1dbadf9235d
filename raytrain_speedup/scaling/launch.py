"""`speedup train`: one run on as many Ray Train workers as the experiment asks for.

One worker on one machine does not pay for a worker group: Train's local mode runs the training function in
this process. Several workers run under a `TorchTrainer` that restarts them from the last checkpoint when one
is lost; so does one worker whose checkpoints go to a URI, for Ray Train brings them there.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from raytrain_speedup.engine.local import Listener, LocalReporter, stop_at_interrupt
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.script_run import run_any
from raytrain_speedup.scaling.board import new_board
from raytrain_speedup.scaling.cluster import connect, on_cluster
from raytrain_speedup.scaling.group import fit, worker_group
from raytrain_speedup.scaling.storage import PathOrUri, is_uri, may_hold_checkpoint
from raytrain_speedup.script import AnyExperiment
from raytrain_speedup.settings import UserError

LISTEN_SECONDS = 0.25


def launch(experiment: AnyExperiment, folder: PathOrUri, listener: Listener) -> dict[str, Any]:
    """Train, and give the final metrics.

    Args:
        experiment: what to do, and on how many workers.
        folder: the run's folder for checkpoints, or its URI; a run found there is resumed. Several workers
            on several nodes need it on storage they all see.
        listener: gets every report and now and then the progress, in this process.

    Raises:
        UserError: for what a user can mend.
        Stopped: after a Ctrl-C; the message says how to go on.
    """
    alone = experiment.scaling.workers == 1 and not on_cluster() and not is_uri(folder)
    if not is_uri(folder):
        _refuse_other_kind(Path(folder), "checkpoint_*" if alone else "checkpoint-*", experiment)
    try:
        if alone:
            return _launch_here(experiment, Path(folder), listener)
        return _launch_group(experiment, folder, listener)
    except Stopped as stop:
        way_on = (
            f"go on with: --resume {folder}" if may_hold_checkpoint(folder) else "there is no checkpoint yet"
        )
        raise Stopped(f"{stop}; {way_on}") from None
    finally:
        if not is_uri(folder):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()  # only where it is empty: nothing came of the run


def _refuse_other_kind(folder: Path, others: str, experiment: AnyExperiment) -> None:
    """A run keeps to one kind of checkpoints; starting afresh beside the other kind would be a surprise."""
    if any(folder.glob(others)):
        raise UserError(
            f"--resume: {folder} was not trained with scaling.workers={experiment.scaling.workers} in this "
            "place; expected the number of workers it began with"
        )


def _launch_here(experiment: AnyExperiment, folder: Path, listener: Listener) -> dict[str, Any]:
    reporter = LocalReporter(folder, listener)
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it announces its local mode

    def train_here() -> dict[str, Any]:
        return run_any(experiment, reporter)

    trainer = TorchTrainer(
        train_here,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name=folder.name, storage_path=str(folder.parent.absolute())),
    )
    with stop_at_interrupt(reporter):
        return trainer.fit().return_value


def _launch_group(experiment: AnyExperiment, folder: PathOrUri, listener: Listener) -> dict[str, Any]:
    connect(experiment.scaling)
    board = new_board()
    with _listening(board, listener), _interrupt_as_stop():
        return fit(worker_group(experiment, folder, board=board)).return_value


@contextlib.contextmanager
def _listening(board: Any, listener: Listener) -> Iterator[None]:
    """Pass on what the workers pin to the board."""
    done = threading.Event()

    def pass_on() -> None:
        for kind, metrics in ray.get(board.take.remote()):
            listener(kind, metrics)

    def listen() -> None:
        while not done.wait(LISTEN_SECONDS):
            pass_on()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        pass_on()


@contextlib.contextmanager
def _interrupt_as_stop() -> Iterator[None]:
    """A Ctrl-C as `Stopped`. `fit` puts up a handler of its own that ends the workers and then this process
    (SystemExit), and leaves it up."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise Stopped("the workers were stopped; what follows the last checkpoint is lost") from None
    finally:
        signal.signal(signal.SIGINT, before)
