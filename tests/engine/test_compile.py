"""torch.compile: one static graph per stage, all of them made in the warm-up, none for an epoch's remainder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, VIT, Diary, WorkerDiary, run, tiny
from ranks import on_two_ranks
from torch._dynamo.utils import counters

from raytrain_speedup.engine.loop import Stopped

BACKENDS = pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # a minute of a C++ compiler's time
KEYS = {  # the position table changes its size with the stage
    **VIT,
    "curriculum.method": "custom",
    "curriculum.schedule": [{"fraction": 0.2}, {"fraction": 0.4, "ratio": 0.5}, {"fraction": 0.4}],
    "data.augment": "none",
}


def graphs(diary: Diary, backend: str | None) -> tuple[int, dict[str, Any]]:
    """How many graphs a run compiles, and what it reports."""
    torch.compiler.reset()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        keys = {"compile": backend is not None, "lr": 0.05, "checkpoint_every": 1}
        metrics = run(tiny(KEYS, **keys), diary, device=CPU)
    return counters["stats"]["unique_graphs"], metrics


def losses(diary: Diary) -> list[float]:
    return [epoch["train_loss"] for epoch in diary.epochs]


def of_a_rank(rank: int, folder: str, backend: str) -> tuple[int, dict[str, Any], list[float], list[float]]:
    plain, diary = (WorkerDiary(Path(folder, name), rank) for name in ("plain", "compiled"))
    graphs(plain, None)
    return *graphs(diary, backend), losses(diary), losses(plain)


@BACKENDS
def test_a_graph_for_each_stage_and_none_for_the_rest(tmp_path: Path, backend: str) -> None:
    plain, diary = Diary(tmp_path / "plain"), Diary(tmp_path / "compiled")
    graphs(plain, None)
    count, metrics = graphs(diary, backend)
    assert 230 % 64  # every epoch ends in a smaller batch
    assert count == 2
    assert losses(diary) == pytest.approx(losses(plain), rel=1e-3)
    assert metrics["warmup_seconds"] > metrics["train_seconds"]


@BACKENDS
def test_two_workers_compile_every_stage_before_the_clock_starts(tmp_path: Path, backend: str) -> None:
    """DDP cannot follow a parameter that changes its shape: each stage is compiled behind a wrapper of its own, and
    the wrapper of the training finds it."""
    for count, metrics, compiled, plain in on_two_ranks(of_a_rank, str(tmp_path), backend):
        assert count == 2
        assert compiled == pytest.approx(plain, rel=1e-3)
        assert metrics["warmup_seconds"] > metrics["train_seconds"]


def test_a_resumed_run_compiles_what_is_ahead_of_it(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        graphs(Diary(tmp_path, stop_after=26), "aot_eager")
    diary = Diary(tmp_path)
    count, _ = graphs(diary, "aot_eager")
    assert diary.epochs
    assert count == 1  # the last stage's
