"""What a run says it is at, from its start to its first step."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from engine_runs import CPU, Diary, distilled, run, tiny

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.loop import Stopped

FIRST = ["opening the data", "looking for a checkpoint", "looking at the data", "building the network"]
BEFORE = ["timing the reference step", "planning epoch 1", "the first step of epoch 1"]


class Told(Diary):
    """Notes phases, and where the first step is over."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.phases: list[str] = []

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def progress(self, metrics: Any) -> None:
        super().progress(metrics)
        if self.phases[-1] != "a step":
            self.phases.append("a step")


def phases(experiment: Experiment, folder: Path, **options: Any) -> list[str]:
    told = Told(folder, **options)
    with contextlib.suppress(Stopped):
        run(experiment, told, device=CPU)
    return told.phases


def test_a_run_says_what_it_is_at_until_its_first_step(tmp_path: Path) -> None:
    stages = [{"fraction": 0.5, "ratio": 0.5}, {"fraction": 0.5}]
    experiment = tiny({"curriculum.method": "custom", "curriculum.schedule": stages})
    warm = ["loading the first batch", "warming up, stage 1 of 2", "warming up, stage 2 of 2"]
    found = phases(experiment, tmp_path, stop_after=2)
    assert found == [*FIRST, *warm, *BEFORE, "a step"]
    again = phases(experiment, tmp_path)
    expected = [*FIRST, *warm, "reading the checkpoint", *BEFORE, "a step"]
    assert again[: len(expected)] == expected
    assert again[len(expected) :][:3] == ["planning epoch 2", "the first step of epoch 2", "a step"]


def test_a_distillation_says_whose_training_it_is(tmp_path: Path) -> None:
    found = phases(distilled(method="noise"), tmp_path, stop_after=1)
    teacher = [
        "preparing the teacher",
        "teacher: planning epoch 1",
        "teacher: the first step of epoch 1",
        "a step",
    ]
    assert found[4:9] == [*teacher, "loading the first batch"]
    assert found[-4:] == [*BEFORE, "a step"]
