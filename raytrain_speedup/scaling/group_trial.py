"""Trials of several workers: a function run by Tune that steers a worker group.

Tune cannot run a `TorchTrainer` itself. The function holds no CPU (see `cluster.driver_resources`), else the
drivers of two trials could keep each other's workers from starting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from raytrain_speedup.config import load_experiment_dict
from raytrain_speedup.scaling.group import fit, worker_group


def group_trial(config: dict[str, Any]) -> None:
    """The function Tune runs, under `tune.with_resources(group_trial, driver_resources())`.

    Args:
        config: `experiment` is an experiment as plain data. The checkpoints go to `storage`/`run_name`; a
            trial that is tried again under the same name goes on from them.

    Raises:
        UserError: for what a user can mend.
    """
    experiment = load_experiment_dict(config["experiment"])
    folder = Path(config["storage"]) / config["run_name"]
    fit(worker_group(experiment, folder, callbacks=(TuneReportCallback(),)))
