"""A run that a sweep will do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raytrain_speedup.engine.statistics.verdict import Plan
from raytrain_speedup.script import AnyExperiment
from raytrain_speedup.tuning.space import Sweep

TRIAL, WINNER, BASELINE = "trial", "winner", "baseline"


@dataclass(frozen=True)
class PlannedRun:
    """A run to be: its name is unique in the sweep and the same when the sweep is resumed.

    Its folder for checkpoints has the id of a Tune trial in its name, which is unique among its runs: only a run
    that goes on gets the folder that it had.
    """

    name: str
    role: str
    experiment: AnyExperiment
    params: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    plan: Plan | None = None
    """Of the confirmation it is a part of."""

    def config(self) -> dict[str, Any]:
        """What the trial's process receives."""
        return {
            "run_name": self.name,
            "folder": self.folder,
            "role": self.role,
            "params": self.params,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "experiment": self.experiment.shipped(),
            "test": self.role != TRIAL,  # a search must not choose by the test split, so it does not read it
        }


def trial_name(number: int) -> str:
    """Of the trial with this number."""
    return f"{TRIAL}-{number:02d}"


def baseline_run(sweep: Sweep, seed: int) -> PlannedRun:
    """The baseline with one seed."""
    keys = sweep.settings.baseline
    return PlannedRun(f"{BASELINE}-seed{seed}", BASELINE, sweep.experiment(keys, seed), dict(keys))


def control_runs(sweep: Sweep, seed: int) -> Iterator[PlannedRun]:
    """The controls with one seed."""
    for role, keys in sweep.settings.controls.items():
        yield PlannedRun(f"{role}-seed{seed}", role, sweep.experiment(keys, seed), dict(keys))
