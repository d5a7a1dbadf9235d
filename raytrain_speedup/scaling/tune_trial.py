"""One-worker trials, run directly in the Tune trial process.

A worker group per trial costs 16-31 s to start; a reused trial process .01 s. So a trial of one worker is the
engine behind a reporter that passes its metrics on to Tune. Its checkpoints are its own business: Tune would
copy them file by file, so that a kill leaves half of one, and forget them when a sweep is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from raytrain_speedup.engine.final_metrics import is_final
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.script_run import run_any
from raytrain_speedup.script import load_any_dict


def trial_reporter(config: Mapping[str, Any]) -> LocalReporter:
    """Reports to the Tune trial this process is.

    The checkpoints are in `storage`/`folder`, as those of `group_trial` are; a trial that is tried again, or
    that a resumed sweep begins again, goes on from them.
    """
    return LocalReporter(Path(config["storage"]) / config["folder"], _to_tune)


def _to_tune(kind: str, metrics: Mapping[str, Any]) -> None:
    if kind == "report":
        tune.report({**metrics, "done": is_final(metrics)})


def trial(config: dict[str, Any]) -> None:
    """The function Tune runs: `config["experiment"]` is an experiment as plain data, `config["test"]` whether the
    test split is read."""
    run_any(load_any_dict(config["experiment"]), trial_reporter(config), test=config.get("test", True))
