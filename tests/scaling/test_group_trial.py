"""Trials of two workers, steered by Tune: real Tuner, real worker groups."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.cluster import driver_resources
from raytrain_speedup.scaling.group_trial import group_trial

TINY = {"data.image_size": 8, "data.augment": "none", "train.epochs": 2} | {
    "scaling.workers": 2,
    "scaling.start_timeout": 300,
}


@pytest.fixture(scope="module")
def results(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Two trials of two workers each on two CPUs, one after the other."""
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)  # as a sweep in this process leaves it
    folder = tmp_path_factory.mktemp("tune")
    tuner = tune.Tuner(
        tune.with_resources(group_trial, driver_resources()),
        param_space={
            "experiment": tune.grid_search(
                [load_experiment("digits", TINY | {"train.seed": seed}).to_dict() for seed in (0, 1)]
            ),
            "folder": tune.sample_from(lambda config: f"seed-{config['experiment']['train']['seed']}"),
            "storage": str(folder / "groups"),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(name="trials", storage_path=str(folder), verbose=0),
    )
    return folder, tuner.fit()


def test_trials_of_two_workers_end_with_their_metrics(results: tuple[Path, Any]) -> None:
    assert results[1].num_errors == 0
    for result in results[1]:
        assert result.metrics["done"]
        assert result.metrics["accuracy"] > 30
        assert result.metrics["hardware"].startswith("2 x ")
    seeds = {result.metrics["seed"] for result in results[1]}
    assert seeds == {0, 1}


def test_every_epoch_reached_tune(results: tuple[Path, Any]) -> None:
    for result in results[1]:
        assert list(result.metrics_dataframe["epoch"]) == [1, 2, 2]  # and the final metrics


def test_checkpoints_are_under_the_name_of_the_run(results: tuple[Path, Any]) -> None:
    folder, grid = results
    for result in grid:
        own = folder / "groups" / f"seed-{result.metrics['seed']}"
        assert len(list(own.glob("checkpoint-*/rank-1.pt"))) == 2


def test_nothing_is_left_behind(results: tuple[Path, Any]) -> None:
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
