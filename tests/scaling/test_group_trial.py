"""Trials of two workers, steered by Tune: real Tuner, real worker groups."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from outside_ray import plain_environment
from ray import tune

from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.board import new_board
from raytrain_speedup.scaling.cluster import driver_resources
from raytrain_speedup.scaling.group_trial import group_trial
from raytrain_speedup.tuning.trials import guarded

TINY = {"data.image_size": 8, "data.augment": "none", "train.epochs": 2} | {
    "scaling.workers": 2,
    "scaling.start_timeout": 300,
}


@pytest.fixture(scope="module")
def results(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Two trials of two workers each on two CPUs, one after the other."""
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)  # as a sweep in this process leaves it
    folder = tmp_path_factory.mktemp("tune")
    board = new_board()
    tuner = tune.Tuner(
        tune.with_resources(guarded(group_trial, board), driver_resources()),
        param_space={
            "run_name": tune.sample_from(lambda config: f"run-{config['experiment']['train']['seed']}"),
            "experiment": tune.grid_search(
                [load_experiment("digits", TINY | {"train.seed": seed}).to_dict() for seed in (0, 1)]
            ),
            "folder": tune.sample_from(lambda config: f"seed-{config['experiment']['train']['seed']}"),
            "storage": str(folder / "groups"),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(name="trials", storage_path=str(folder), verbose=0),
    )
    return folder, tuner.fit(), ray.get(board.take.remote())


def test_what_the_workers_say_is_told_by_run(results: tuple[Path, Any, Any]) -> None:
    """And nothing that would fill the board of a sweep whose driver does not look."""
    notes = results[2]
    assert {metrics["run"] for _, metrics in notes} == {"run-0", "run-1"}
    begun = [metrics for kind, metrics in notes if kind == "begin"]
    assert begun == [{"checkpoint": None, "run": run} for run in ("run-0", "run-1")]
    kept = [(metrics["run"], metrics["name"]) for kind, metrics in notes if kind == "checkpoint"]
    assert kept == [(f"run-{n}", f"checkpoint-00000{number}") for n in (0, 1) for number in (0, 1, 2)]
    assert {tuple(metrics) for kind, metrics in notes if kind == "report"} == {("run",)}


def test_trials_of_two_workers_end_with_their_metrics(results: tuple[Path, Any, Any]) -> None:
    assert results[1].num_errors == 0
    for result in results[1]:
        assert result.metrics["done"]
        assert result.metrics["accuracy"] > 30
        assert result.metrics["hardware"].startswith("2 x ")
    seeds = {result.metrics["seed"] for result in results[1]}
    assert seeds == {0, 1}


def test_every_epoch_reached_tune(results: tuple[Path, Any, Any]) -> None:
    for result in results[1]:
        assert list(result.metrics_dataframe["epoch"]) == [1, 2, 2]  # and the final metrics


def test_checkpoints_are_under_the_name_of_the_run(results: tuple[Path, Any, Any]) -> None:
    folder, grid, _ = results
    for result in grid:
        own = folder / "groups" / f"seed-{result.metrics['seed']}"
        assert len(list(own.glob("checkpoint-*/rank-1.pt"))) == 2


def test_nothing_is_left_behind(results: tuple[Path, Any, Any]) -> None:
    deadline = time.monotonic() + 3
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


def test_drivers_need_no_resource_of_their_own(ray_session: None, tmp_path: Path) -> None:
    """On a head without `tune_driver`, such as a plain `ray start --head`, several drivers fit at a time."""

    def two_at_a_time(config: dict[str, Any]) -> dict[str, float]:
        began = time.time()
        time.sleep(3)
        return {"began": began, "ended": time.time()}

    assert driver_resources() == {"tune_driver": 1}
    assert ray.cluster_resources()["node:__internal_head__"] == 1
    tuner = tune.Tuner(
        tune.with_resources(two_at_a_time, {"node:__internal_head__": 1 / 64}),
        param_space={"number": tune.grid_search([0, 1])},
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    grid = tuner.fit()
    assert grid.num_errors == 0
    began = [result.metrics["began"] for result in grid]
    ended = [result.metrics["ended"] for result in grid]
    assert max(began) < min(ended)


KILLED = """
name: killed
experiment: digits
overrides: {data.image_size: 8, data.augment: none, train.epochs: 12}
trial: {pruning.method: infobatch}
search:
  pruning.prune_ratio: {type: float, low: 0.2, high: 0.6}
trials: 1
baselines: 1
seeds: [0]
confirm: {winners: 0}
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_says_when_workers_of_a_trial_are_started_again(tmp_path: Path) -> None:
    """By the command line; one of the two workers is killed when there is a checkpoint."""
    (tmp_path / "space.yaml").write_text(KILLED)
    sweep = (
        "sweep",
        "space.yaml",
        "scaling.workers=2",
        "scaling.storage=runs",
        "--tracking-uri=json:tracked",
    )
    begun = subprocess.Popen(
        [sys.executable, "-m", "raytrain_speedup.cli", *sweep],
        cwd=tmp_path,
        env=plain_environment() | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not list(tmp_path.glob("runs/*/*/checkpoint-000001")):
            assert begun.poll() is None, begun.stdout.read()  # type: ignore[union-attr]
            time.sleep(0.05)
        below = psutil.Process(begun.pid).children(recursive=True)
        next(process for process in below if "RayTrainWorker" in " ".join(process.cmdline())).kill()
        said, _ = begun.communicate(timeout=200)
    finally:
        begun.kill()
    assert begun.returncode == 0, said
    told = (
        r"  restarted: the process of worker \d died: \d+ s later the workers went on from checkpoint-0\d+; "
    )
    assert len(re.findall(told, said)) == 1, said
    assert said.count("  finished") >= 2 and "failed" not in said, said
