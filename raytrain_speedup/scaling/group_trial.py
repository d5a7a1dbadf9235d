"""Trials of several workers: a function run by Tune that steers a worker group.

Tune cannot run a `TorchTrainer` itself. The function holds no CPU (see `cluster.driver_resources`), else the
drivers of two trials could keep each other's workers from starting.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raytrain_speedup.engine.final_metrics import is_final
from raytrain_speedup.scaling.group import fit_group, worker_group
from raytrain_speedup.scaling.storage import inside
from raytrain_speedup.script import load_any_dict


class EpochsToTune(TuneReportCallback):
    """Passes on every report but the last. A trial that has given its final metrics is over for Tune, and the
    group's CPUs would stay taken until somebody notices; the trial reports them itself when the group is gone."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if not is_final(metrics[0]):
            super().after_report(run_context, metrics, checkpoint)


def group_trial(config: dict[str, Any]) -> None:
    """The function Tune runs, under `tune.with_resources(group_trial, driver_resources())`.

    Args:
        config: `experiment` is an experiment as plain data. The checkpoints go to `storage`/`folder`; a
            trial that is tried again in the same one goes on from them. `test` says whether the test split is
            read. `board` is a `BoardOfRun` for what a user should hear of the workers, or not there.

    Raises:
        UserError: for what a user can mend.
    """
    experiment = load_any_dict(config["experiment"])
    folder = inside(config["storage"], config["folder"])
    group = worker_group(
        experiment,
        folder,
        board=config.get("board"),
        callbacks=(EpochsToTune(),),
        test=config.get("test", True),
    )
    result = fit_group(group)
    tune.report({**result.return_value, "done": True})
