"""One-worker trials, run directly in the Tune trial process.

A worker group per trial costs 16-31 s to start; a reused trial process .01 s. So a trial of one worker is the
engine behind a reporter that passes its metrics on to Tune. Its checkpoints are its own business: Tune would
copy them file by file, so that a kill leaves half of one, and forget them when a sweep is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.reporter import Notice
from raytrain_speedup.engine.script_run import run_any
from raytrain_speedup.scaling.board import NodeTakenBack
from raytrain_speedup.scaling.cluster import drains_watched
from raytrain_speedup.script import load_any_dict


class TrialReporter(LocalReporter):
    """Reports to the Tune trial this process is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _to_tune)
        self.watches = ray.is_initialized() and drains_watched()

    def notice(self) -> Notice | None:
        # As Ray Train's own watcher asks; there is no public way.
        deadlines = ray._private.state.state.get_draining_nodes()
        here = ray.get_runtime_context().get_node_id()
        if here not in deadlines:
            return None
        return Notice((ray.util.get_node_ip_address(),), deadlines[here] / 1000 or None)

    def leave(self, notice: Notice) -> None:
        """Ends the trial, which Tune begins again elsewhere: Ray places nothing on a node that is drained, and this
        process ends with the trial.

        Raises:
            NodeTakenBack: always.
        """
        raise NodeTakenBack(str(notice))


def trial_reporter(config: Mapping[str, Any]) -> LocalReporter:
    """Reports to the Tune trial this process is.

    The checkpoints are in `storage`/`folder`, as those of `group_trial` are; a trial that is tried again, or
    that a resumed sweep begins again, goes on from them.
    """
    return TrialReporter(Path(config["storage"]) / config["folder"])


def _to_tune(kind: str, metrics: Mapping[str, Any]) -> None:
    # Not "done" with the last one: Tune hears of the end when the function has returned, and by then it knows what
    # is next, for which it keeps this process. It ends those that it knows no use for.
    if kind == "report":
        tune.report(dict(metrics))


def trial(config: dict[str, Any]) -> None:
    """The function Tune runs: `config["experiment"]` is an experiment as plain data, `config["test"]` whether the
    test split is read."""
    reporter = trial_reporter(config)
    if reporter.watches and (
        notice := reporter.notice()
    ):  # Tune gives a process that it keeps the next trial
        reporter.leave(notice)
    run_any(load_any_dict(config["experiment"]), reporter, test=config.get("test", True))
