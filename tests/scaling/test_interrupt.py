"""Ctrl-C in a real `speedup train`: exit code 130, the checkpoint named, nothing of the run lost by it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from outside_ray import plain_environment

from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.launch import launch

ROOT = Path(__file__).parents[2]
TINY = {"data.image_size": 8, "data.augment": "crop", "pruning.method": "infobatch"}


@contextmanager
def speedup_train(folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """`speedup train digits` in a process group of its own, as a terminal would start it."""
    environment = plain_environment()
    environment |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "300",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "raytrain_speedup.cli", "train", "digits", *arguments]
        + [f"{key}={value}" for key, value in TINY.items()]
        + [f"scaling.storage={folder}", f"--tracking-uri=sqlite:///{folder}/mlflow.db"],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def interrupted(
    process: subprocess.Popen, *, after: str, by: int = signal.SIGINT, alone: bool = False
) -> str:
    """Press Ctrl-C (or another signal) when a line begins with `after`; gives everything the process wrote.

    Args:
        alone: not to its children: Ray's own processes end at a SIGTERM.
    """
    assert process.stdout is not None
    written = ""
    for line in process.stdout:
        written += line
        if line.startswith(after):
            break
    assert process.poll() is None, written
    time.sleep(0.05)
    (os.kill if alone else os.killpg)(process.pid, by)
    written += process.stdout.read()
    process.wait(timeout=60)
    return written


def runs_in(folder: Path) -> list[Any]:
    """All MLflow runs of the tests' database."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs([found.experiment_id for found in client.search_experiments()])


@pytest.mark.timeout(600)
def test_a_run_that_is_ended_twice_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """SIGTERM leaves a checkpoint and says how the run ended, as Ctrl-C does (below, and in test_cli.py), SIGKILL
    nothing; it is one run in MLflow all along, and ends with the weights of a run that nobody ended."""
    epochs, resume = "train.epochs=12", []
    for by, after in ((signal.SIGTERM, "epoch   2"), (signal.SIGKILL, "epoch   5")):
        with speedup_train(tmp_path, epochs, *resume) as process:
            written = interrupted(process, after=after, by=by)
        (folder,) = tmp_path.glob("digits-*")
        (ended,) = runs_in(tmp_path)
        assert "Traceback" not in written and (not resume or "epoch   1 " not in written)
        if by == signal.SIGKILL:
            assert ended.info.status == "RUNNING", "nobody could say that it ended"
        else:
            assert process.returncode == 130, written
            assert f"--resume {folder}" in written and max(folder.glob("checkpoint-*")).name in written
            assert ended.info.status == "KILLED"
        resume = [f"--resume={folder}"]

    with speedup_train(tmp_path, epochs, *resume) as process:
        resumed = process.communicate()[0]
    assert process.returncode == 0, resumed
    (run,) = runs_in(tmp_path)
    assert run.info.run_id == ended.info.run_id and run.info.status == "FINISHED"
    reported = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(
        run.info.run_id, "epoch/epoch"
    )
    assert [metric.step for metric in reported] == list(range(1, 13))
    assert run.data.metrics["samples_shown"] > 0

    experiment = load_experiment("digits", TINY | {"train.epochs": 12})
    metrics = launch(experiment, tmp_path / "whole", lambda kind, metrics: None).to_dict()
    assert f"{metrics['accuracy']:.2f} %" in resumed
    ends = [max(place.glob("checkpoint-*")) / "model.pt" for place in (folder, tmp_path / "whole")]
    went_on, whole = (torch.load(end, weights_only=True) for end in ends)
    for name, tensor in whole.items():
        assert torch.equal(went_on[name], tensor), name


@pytest.mark.timeout(300)
def test_two_workers_stop_and_name_where_to_go_on(tmp_path: Path) -> None:
    """SIGTERM too: a checkpoint is taken where they are, in the middle of an epoch, though none was due."""
    keys = "train.epochs=500", "scaling.workers=2", "train.checkpoint_every=400"
    with speedup_train(tmp_path, *keys) as process:
        written = interrupted(process, after="epoch   2", by=signal.SIGTERM, alone=True)
    assert process.returncode == 130, written
    assert "Traceback" not in written
    (folder,) = tmp_path.glob("digits-*")
    (checkpoint,) = folder.glob("checkpoint-*")
    said = re.search(
        r"stopped in epoch (\d+) after step (\d+) of \d+; the checkpoint is (\S+); go on with", written
    )
    assert said is not None and said[3] == str(checkpoint) and f"--resume {folder}" in written
    state = torch.load(checkpoint / "run.pt", weights_only=True)
    assert (state["epoch"] + 1, state["next_step"]) == (int(said[1]), int(said[2]))
