"""How the runs of a sweep run on Ray Tune: in which processes, with which resources, and how they end."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.scaling.board import NodeTakenBack, new_board
from raytrain_speedup.scaling.cluster import driver_resources
from raytrain_speedup.scaling.group_trial import group_trial
from raytrain_speedup.scaling.storage import inside, is_uri, parent_and_name
from raytrain_speedup.scaling.trial_notes import BoardOfRun
from raytrain_speedup.scaling.tune_trial import trial
from raytrain_speedup.settings import UserError
from raytrain_speedup.tuning.callback import SweepCallback
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.schedulers import build_scheduler
from raytrain_speedup.tuning.space import Sweep

Trainable = Callable[[dict[str, Any]], None]
"""Runs one experiment in a Tune trial and reports by `tune.report`. `config["experiment"]` is the experiment
as plain data, `config["run_name"]` the same when a sweep is resumed, `config["storage"]` for checkpoints."""

OUT_OF_MEMORY = "out of memory"  # of CUDA, of the host, and of every allocator that torch has

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the metrics go to MLflow
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an epoch without evaluation lacks the objective
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # and the screen shows one table, ours
}


def fit(sweep: Sweep, plan: SweepPlan, callback: SweepCallback, trainable: Trainable, parent: str) -> None:
    settings, scaling = sweep.settings, sweep.base.scaling
    name = f"{settings.name}-{parent[:8]}"
    storage, _ = parent_and_name(inside(scaling.storage or "runs", name))
    board = None if _in_the_trial(scaling) else new_board()
    callback.follow(board)
    tuner = tune.Tuner(
        tune.with_resources(guarded(trainable, board), _resources(scaling)),
        param_space={"storage": inside(storage, name)},
        tune_config=tune.TuneConfig(
            search_alg=plan,
            scheduler=build_scheduler(settings.scheduler, plan),
            num_samples=-1,  # the plan says when it is over
            max_concurrent_trials=settings.concurrency,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=scaling.max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def guarded(trainable: Trainable, board: Any = None) -> Trainable:
    """A trial whose error is a report: it ends with its reason, its process lives on for the next trial.

    What its workers have to say goes to the sweep's `board`, where there is one.

    Only the loss of the process, or of its node, is left for Tune to retry. `again` says whether the plan may try
    once more: not what the user got wrong, and not what did not fit into memory.
    """

    def run(config: dict[str, Any]) -> None:
        if board is not None:
            config = {**config, "board": BoardOfRun(board, config["run_name"])}
        try:
            trainable(config)
        except NodeTakenBack:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            again = not isinstance(error, UserError) and OUT_OF_MEMORY not in reason.lower()
            said = {"error": reason, "again": again, "traceback": traceback.format_exc()}
            tune.report({**said, "done": True})

    return run


def _trial_name(trial: Trial) -> str:
    return str(trial.config["run_name"])


def _trial_folder(trial: Trial) -> str:
    return str(trial.config["folder"])


def _in_the_trial(scaling: ScalingSettings) -> bool:
    """Whether a trial trains in its own process; a group can do more, and starts more slowly."""
    return scaling.most_workers == 1 and not is_uri(scaling.storage or "")


def trainable_for(scaling: ScalingSettings) -> Trainable:
    return trial if _in_the_trial(scaling) else group_trial


def _resources(scaling: ScalingSettings) -> dict[str, float]:
    if _in_the_trial(scaling):
        return {"cpu": scaling.cpus_per_worker, "gpu": scaling.gpus_per_worker}
    return driver_resources()
