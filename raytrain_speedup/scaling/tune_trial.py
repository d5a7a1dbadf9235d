"""One-worker trials, run directly in the Tune trial process.

A worker group per trial costs 16-31 s to start; a reused trial process .01 s. So a trial of one worker is the
engine behind a reporter that talks to Tune.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ray import tune

from raytrain_speedup.config import load_experiment_dict
from raytrain_speedup.engine.reporter import Figures, Reporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.scaling.storage import folder_of


class TuneReporter(Reporter):
    """Reports to the Tune trial this process is."""

    def report(self, figures: Figures, checkpoint: Path | None = None) -> None:
        tune.report(
            dict(figures),
            checkpoint=tune.Checkpoint.from_directory(checkpoint) if checkpoint is not None else None,
        )
        if checkpoint is not None:
            shutil.rmtree(checkpoint)  # Tune has copied it to its storage

    def latest(self) -> Path | None:
        checkpoint = tune.get_checkpoint()
        return folder_of(checkpoint) if checkpoint is not None else None

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="checkpoint-"))


def trial(config: dict[str, Any]) -> None:
    """The function Tune runs: `config["experiment"]` is an experiment as plain data."""
    run(load_experiment_dict(config["experiment"]), TuneReporter())
