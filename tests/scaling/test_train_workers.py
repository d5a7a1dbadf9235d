"""Runs on a group of two Ray Train workers: real processes, real gloo, real SIGKILL."""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from run_ends import same_weights

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.scaling import cluster
from raytrain_speedup.scaling.group import fit_group, worker_group
from raytrain_speedup.scaling.launch import launch
from raytrain_speedup.settings import UserError

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(900)]  # on a machine that is busy

TINY = {"data.image_size": 8, "data.augment": "none", "train.epochs": 3} | {
    "scaling.workers": 2,
    "scaling.start_timeout": 300,  # of a machine that is busy
}


def digits(**more: Any) -> Experiment:
    return load_experiment("digits", TINY | {key.replace("__", "."): value for key, value in more.items()})


class Listener:
    """Remembers the reports and when they came."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.progress = 0
        self.phases: list[str] = []

    def __call__(self, kind: str, metrics: Any) -> None:
        if kind == "report":
            self.reports.append(dict(metrics))
            self.times.append(time.monotonic())
        elif kind == "phase":
            self.phases.append(metrics["name"])
        else:
            self.progress += 1

    def epochs(self) -> list[int]:
        return [report["epoch"] for report in self.reports if "kept_fraction" in report]


@pytest.fixture(scope="module")
def whole(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Listener, dict]:
    """An undisturbed run of two workers: its folder, which they know by its address, what was heard of it, its
    metrics."""
    folder, listener = tmp_path_factory.mktemp("runs") / "whole", Listener()
    return folder, listener, launch(digits(), folder.as_uri(), listener).to_dict()


def test_two_workers_train_and_tell_live(whole: tuple[Path, Listener, dict]) -> None:
    folder, listener, metrics = whole
    assert listener.epochs() == [1, 2, 3]
    assert listener.reports[-1]["final"] and listener.reports[-1]["accuracy"] == metrics["accuracy"]
    assert listener.times[0] < listener.times[-1], "all reports came at once, at the end"
    assert listener.progress > 0
    assert listener.phases[:3] == ["starting Ray", "waiting for 2 workers", "opening the data"]
    assert listener.phases[-1] == "the first step of epoch 3"
    assert len(listener.phases) == len(set(listener.phases)), "of one rank, each once"
    assert metrics["accuracy"] > 50
    assert metrics["hardware"].startswith("2 x ")
    assert len(list(folder.glob("checkpoint-*/run.pt"))) == 2


def test_a_second_launch_goes_on_from_the_folder(whole: tuple[Path, Listener, dict]) -> None:
    folder, _, metrics = whole
    listener = Listener()
    again = launch(digits(), folder, listener).to_dict()
    assert listener.epochs() == []  # nothing was left to train
    for name in ("accuracy", "test_loss", "val_loss", "samples_shown", "train_seconds"):
        assert again[name] == metrics[name], name


def test_a_killed_worker_costs_time_and_nothing_else(
    whole: tuple[Path, Listener, dict], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, undisturbed, expected = whole
    pids: list[int] = []

    class Killer(Listener):
        def __call__(self, kind: str, metrics: Any) -> None:
            super().__call__(kind, metrics)
            if kind == "report" and not pids:
                pids.append(_pid_of_a_worker())
                os.kill(pids[0], signal.SIGKILL)

    killer = Killer()
    before = held_folders()
    metrics = launch(digits(train__epochs=3), (tmp_path / "killed").as_uri(), killer).to_dict()
    assert pids, "no worker was killed"
    assert held_folders() <= before, "a copy of the checkpoint stayed"
    said = [record.getMessage() for record in caplog.records]
    assert any(
        "s later the workers went on from checkpoint-0" in line and "s) lost" in line for line in said
    ), said
    assert sorted(set(killer.epochs())) == [1, 2, 3]
    for name in ("accuracy", "test_loss", "val_accuracy", "val_loss", "samples_shown"):
        assert metrics[name] == expected[name], name
    losses = {report["epoch"]: report["train_loss"] for report in killer.reports if "kept_fraction" in report}
    assert list(losses.values()) == [r["train_loss"] for r in undisturbed.reports if "kept_fraction" in r]
    assert same_weights(tmp_path / "killed", folder)


def held_folders() -> set[Path]:
    """What is on its way to a storage behind a URI, or from there. Ray's workers have the same one."""
    return set(Path(tempfile.gettempdir()).glob("speedup-held-*"))


def _pid_of_a_worker() -> int:
    """The process of the worker group's second rank, by the name Ray gives its process title."""
    from ray.util.state import list_actors

    workers = [
        actor
        for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True)
        if actor.class_name == "RayTrainWorker"
    ]
    return int(workers[-1].pid)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        pytest.param(
            {"data.source": "parquet", "data.train": "nowhere.parquet", "data.test": "nowhere.parquet"},
            "nowhere",
            marks=pytest.mark.slow,
        ),
        ({"train.lr": 1e20, "train.warmup": 0}, "not finite"),
    ],
)
def test_a_mistake_ends_the_run_at_once(overrides: dict[str, Any], says: str, tmp_path: Path) -> None:
    experiment = load_experiment("digits", TINY | overrides)
    starts = _actors_started()
    with pytest.raises(UserError, match=says) as caught:
        launch(experiment, tmp_path / "mistake", Listener())
    assert "Traceback" not in str(caught.value)
    assert _actors_started() - starts == 2, "the group was started again"


def _actors_started() -> int:
    from ray.util.state import list_actors

    return sum(actor.class_name == "RayTrainWorker" for actor in list_actors(limit=10_000))


def test_a_group_larger_than_the_machine_is_refused_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"scaling.workers: 4 x 1 CPU is more than this machine's 2"):
        launch(digits(scaling__workers=4), tmp_path / "large", Listener())
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["127.0.0.1:1", "cluster"])
def test_a_cluster_that_is_not_there_is_a_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at the one, and the other is no address. (Ray itself tries for three minutes.)"""
    monkeypatch.setattr(cluster, "KNOCK_SECONDS", 0.1)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        UserError, match=rf"RAY_ADDRESS={address}: no Ray cluster answers there; expected HOST:PORT"
    ):
        cluster.connect(digits().scaling)


def test_resources_that_do_not_come_are_given_up(tmp_path: Path) -> None:
    """On a cluster nobody knows what an autoscaler may bring; the wait is `scaling.start_timeout`."""
    began = time.monotonic()
    with pytest.raises(UserError, match=r"4 workers .* could not be started; the cluster has 2 CPUs"):
        fit_group(worker_group(digits(scaling__workers=4, scaling__start_timeout=3), tmp_path / "waiting"))
    assert time.monotonic() - began < 30


def test_what_is_timed_does_not_yield_to_every_other_process() -> None:
    """Ray's workers are at nice 15 by default: on a busy machine they got 8 % of a core."""

    @ray.remote
    def niceness() -> int:
        return os.nice(0)

    assert ray.get(niceness.remote()) == os.nice(0)
