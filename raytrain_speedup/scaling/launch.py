"""`speedup train`: one run on as many Ray Train workers as the experiment asks for.

One worker on one machine does not pay for a worker group: Train's local mode runs the training function in
this process. Several workers run under a `TorchTrainer` that restarts them from the last checkpoint when one
is lost; so does one worker whose checkpoints go to a URI. Their checkpoints are alike: a run goes on with another
number of workers than it was begun with.
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
from pyarrow import ArrowException
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer

from raytrain_speedup.engine.final_metrics import FinalMetrics, is_final
from raytrain_speedup.engine.local import Listener, LocalReporter, stop_at_interrupt
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.script_run import run_any
from raytrain_speedup.scaling.board import BOARD_SECONDS, new_board
from raytrain_speedup.scaling.cluster import connect, on_cluster
from raytrain_speedup.scaling.group import fit_group, worker_group
from raytrain_speedup.scaling.restarts import Restarts
from raytrain_speedup.scaling.storage import RUN_ID, PathOrUri, is_uri, may_hold_checkpoint
from raytrain_speedup.scaling.uri_store import store_of
from raytrain_speedup.script import AnyExperiment

log = logging.getLogger("raytrain_speedup")

LISTEN_SECONDS = 0.25


def launch(experiment: AnyExperiment, folder: PathOrUri, listener: Listener) -> FinalMetrics:
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
    alone = experiment.scaling.most_workers == 1 and not on_cluster() and not is_uri(folder)
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
        with contextlib.suppress(OSError, ArrowException):
            store_of(folder).clear()  # what a worker that ended in the middle of a checkpoint left
            if not may_hold_checkpoint(folder):  # nothing came of the run
                (Path(folder) / RUN_ID).unlink(missing_ok=True)
                Path(folder).rmdir()  # only where it is empty


def _launch_here(experiment: AnyExperiment, folder: Path, listener: Listener) -> FinalMetrics:
    reporter = LocalReporter(folder, listener)
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it announces its local mode

    def train_here() -> dict[str, Any]:
        return run_any(experiment, reporter).to_dict()

    trainer = TorchTrainer(
        train_here,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name=folder.name, storage_path=str(folder.parent.absolute())),
    )
    with stop_at_interrupt(reporter):
        return FinalMetrics.from_dict(trainer.fit().return_value)


def _launch_group(experiment: AnyExperiment, folder: PathOrUri, listener: Listener) -> FinalMetrics:
    listener("phase", {"name": "starting Ray"})
    connect(experiment.scaling)
    board = new_board()
    count = experiment.scaling.least_workers
    listener("phase", {"name": f"waiting for {count} worker{'s' if count > 1 else ''}"})
    # Again, for Ray has put up a handler of its own, which ends the process 3 s after a SIGTERM.
    with termination_as_interrupt(), _listening(board, listener) as heard, _interrupt_as_stop():
        metrics = fit_group(worker_group(experiment, folder, board=board)).return_value
    if not heard.end:
        listener("report", metrics)  # it was lost with the board
    return FinalMetrics.from_dict(metrics)


HEARD = ("report", "progress", "phase", "image")
"""Of what is pinned to the board, what the listener gets."""


class _Heard:
    """Passes on what the workers pin to the board.

    Attributes:
        end: whether the final metrics were among it.
    """

    def __init__(self, board: Any, listener: Listener) -> None:
        self.end = False
        self._board, self._listener, self._restarts = board, listener, Restarts()

    def pass_on(self) -> None:
        try:
            notes = ray.get(self._board.take.remote(), timeout=BOARD_SECONDS)
        except RayError as error:  # the run goes on without its display
            log.debug("the board does not answer: %s", error)
            return
        for kind, metrics in notes:
            if line := self._restarts.note(kind, metrics):
                log.warning(line)
            if kind == "warning":
                log.warning(metrics["text"])
            if kind not in HEARD:
                continue
            self.end = self.end or is_final(metrics)
            self._listener(kind, metrics)


@contextlib.contextmanager
def _listening(board: Any, listener: Listener) -> Iterator[_Heard]:
    """Pass on what the workers pin to the board, while they train."""
    done, heard = threading.Event(), _Heard(board, listener)

    def listen() -> None:
        while not done.wait(LISTEN_SECONDS):
            heard.pass_on()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        thread.join()
        heard.pass_on()


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """A SIGTERM (of a batch system, a spot node, a container's end) takes the path of a Ctrl-C: checkpoint, end.

    Only the main thread is asked by signals; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
