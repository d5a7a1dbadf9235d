"""Faults of a worker group that must not end its run, or end it in a line: real processes, a real full disk."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from full_disk import fill, tiny_disk
from loopback_s3 import LoopbackS3
from outside_ray import plain_environment
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors
from run_ends import same_weights

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.checkpoints.checkpoint import CheckpointFailed
from raytrain_speedup.scaling.board import new_board
from raytrain_speedup.scaling.launch import launch
from raytrain_speedup.settings import UserError

TINY = {
    "data.image_size": 8,
    "data.augment": "none",
    "data.val_fraction": 0.84,
    "train.epochs": 8,
    "pruning.method": "none",
    "scaling.workers": 2,
    "scaling.start_timeout": 300,
}


def digits() -> Experiment:
    return load_experiment("digits", TINY)


class At:
    """Does something when an epoch is reported, once; remembers the epochs and the end."""

    def __init__(self, what: dict[int, Callable[[], None]]) -> None:
        self.epochs: list[int] = []
        self.ends = 0
        self._what = what

    def __call__(self, kind: str, metrics: Any) -> None:
        if kind != "report":
            return
        self.ends += bool(metrics.get("final"))
        if "kept_fraction" in metrics:
            self.epochs.append(metrics["epoch"])
            self._what.pop(metrics["epoch"], lambda: None)()


def test_a_storage_that_is_away_is_waited_for_and_a_killed_board_costs_a_few_lines(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount, away = tmp_path / "mount", tmp_path / "away"

    def outage() -> None:
        mount.rename(away)
        threading.Timer(4, lambda: away.rename(mount)).start()

    def kill_the_board() -> None:
        (board,) = list_actors(filters=[("class_name", "=", "Board"), ("state", "=", "ALIVE")], detail=True)
        os.kill(int(board.pid), signal.SIGKILL)

    began = time.monotonic()
    listener = At({1: outage, 5: kill_the_board})
    metrics = launch(digits(), mount / "run", listener).to_dict()
    assert time.monotonic() - began > 4
    assert metrics["samples_shown"] == 8 * 230
    assert listener.epochs[:5] == [1, 2, 3, 4, 5]
    assert listener.epochs == sorted(set(listener.epochs)) and listener.epochs[-1] == 8 and listener.ends == 1
    said = [record.getMessage() for record in caplog.records]
    assert any("does not answer (No such file or directory); trying for 120 s" in text for text in said), said
    assert any("answers again" in text for text in said)


def test_a_full_disk_names_the_checkpoint_and_leaves_no_half_one(ray_session: None, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        folder = disk / "run"
        with pytest.raises(CheckpointFailed) as error:
            launch(digits(), folder, At({1: lambda: fill(disk)}))
        assert "checkpoint not written (No space left on device)" in str(error.value)
        assert f"the last good checkpoint is {folder / 'checkpoint-0'}" in str(error.value)
        assert {path.name[:12] for path in folder.iterdir()} == {"checkpoint-0"}


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The metrics of the run that nothing happens to, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return launch(digits(), folder, At({})).to_dict(), folder


def same_end(folder: Path, metrics: dict[str, Any], undisturbed: tuple[dict[str, Any], Path]) -> None:
    """The weights, to the last bit, and the samples."""
    expected, whole = undisturbed
    for name in ("samples_shown", "passes_saved", "accuracy", "test_loss"):
        assert metrics[name] == expected[name], name
    assert same_weights(folder, whole)


@pytest.mark.slow
def test_with_space_again_a_run_goes_on_as_if_the_disk_had_never_been_full(
    undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        before, after = At({3: lambda: fill(disk)}), At({})
        with pytest.raises(CheckpointFailed):
            launch(digits(), disk / "run", before)
        (disk / "filler").unlink()
        metrics = launch(digits(), disk / "run", after).to_dict()
        assert before.epochs[0] == 1 < after.epochs[0], "what was kept is not trained again"
        assert sorted({*before.epochs, *after.epochs}) == list(range(1, 9))
        same_end(disk / "run", metrics, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_storage_that_is_away_for_a_minute_costs_a_minute(
    undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    mount, away = tmp_path / "mount", tmp_path / "away"

    def outage() -> None:
        mount.rename(away)
        threading.Timer(62, lambda: away.rename(mount)).start()

    began = time.monotonic()
    listener = At({3: outage})
    metrics = launch(digits(), mount / "run", listener).to_dict()
    assert 62 < time.monotonic() - began < 180
    assert listener.epochs == list(range(1, 9)), "no epoch twice"
    same_end(mount / "run", metrics, undisturbed)


def test_a_bucket_that_is_not_there_is_a_line(ray_session: None) -> None:
    with LoopbackS3().running() as s3:
        uri = f"s3://nowhere/runs/one?endpoint_override={s3.endpoint.removeprefix('http://')}&scheme=http"
        with pytest.raises(UserError, match=r"s3://nowhere/runs/one.*'nowhere' not found.*expected") as error:
            launch(digits(), uri, At({}))
    assert "\n" not in str(error.value)


BOARDS = """
import ray
from ray.cluster_utils import Cluster

from raytrain_speedup.scaling.board import new_board

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
for _ in range(2):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
from ray.util.state import list_actors
boards = [new_board() for _ in range(8)]
ray.get([board.take.remote() for board in boards])
nodes = {actor.node_id for actor in list_actors(filters=[("class_name", "=", "Board")], detail=True)}
print("on the driver's node:", nodes == {ray.get_runtime_context().get_node_id()})
"""


def test_a_board_is_bound_to_the_node_of_whoever_listens_and_starts_again(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray is asked for, of a cluster that has no other node; a slow test has others."""
    asked: dict[str, Any] = {}
    remote = ray.remote

    def noted(**options: Any) -> Any:
        asked.update(options)
        return remote(**options)

    monkeypatch.setattr(ray, "remote", noted)
    board = new_board()
    strategy = asked["scheduling_strategy"]
    assert isinstance(strategy, NodeAffinitySchedulingStrategy)
    assert (strategy.node_id, strategy.soft) == (ray.get_runtime_context().get_node_id(), False)
    assert asked["max_restarts"] == asked["max_task_retries"] == -1 and asked["num_cpus"] == 0
    board.put.remote("phase", {"name": "starting Ray"})
    assert ray.get(board.take.remote(), timeout=60) == [("phase", {"name": "starting Ray"})]


@pytest.mark.slow
def test_the_board_is_on_the_node_of_whoever_listens(tmp_path: Path) -> None:
    """On another it would be lost with that node. (Left to itself, Ray put most on the others.)"""
    environment = plain_environment()
    found = subprocess.run(
        [sys.executable, "-c", BOARDS],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    assert "on the driver's node: True" in found.stdout, found.stderr[-2000:]
