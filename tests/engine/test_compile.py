"""torch.compile: one static graph per stage, all of them made in the warm-up, none for an epoch's remainder."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from engine_runs import CPU, VIT, Diary, run, tiny
from torch._dynamo.utils import counters

STAGES = [{"fraction": 0.5, "ratio": 0.5}, {"fraction": 0.5}]


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # a minute of a C++ compiler's time
def test_a_graph_for_each_stage_and_none_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    keys = {**VIT, "curriculum.method": "custom", "curriculum.schedule": STAGES, "data.augment": "none"}
    losses = {}
    for compiled in (False, True):
        torch.compiler.reset()
        counters.clear()
        diary = Diary(tmp_path / str(compiled))
        metrics = run(tiny(keys, compile=compiled, lr=0.05, checkpoint_every=0), diary, device=CPU)
        losses[compiled] = [epoch["train_loss"] for epoch in diary.epochs]
    assert 230 % 64  # every epoch ends in a smaller batch
    assert counters["stats"]["unique_graphs"] == len(STAGES)
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert metrics["warmup_seconds"] > metrics["train_seconds"]
