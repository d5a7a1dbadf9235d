"""Two workers without data: each makes its own images, and both have one teacher, one generator, one student.

Two gloo processes are started once, run every scenario and leave what they hold in files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, STEPS, Diary, WorkerDiary, distilled, same
from ranks import on_two_ranks

from raytrain_speedup.engine import run as engine
from raytrain_speedup.engine.checkpoints.checkpoint import read_own
from raytrain_speedup.engine.loop import Loop, Stopped
from raytrain_speedup.methods.distillation import evaluation_set

EXPERIMENT = distilled({"data.val_fraction": 0.0, "teacher.train.epochs": 0.2})
"""Without a validation split nothing but the end of its training makes the ranks' teachers one."""


def worker(rank: int, folder: Path) -> None:
    evaluation_set.STEPS = 1  # what it shows does not matter here
    final_metrics = engine._final_metrics

    def kept(loop: Loop, passes: float, *, test: bool) -> dict[str, Any]:
        metrics = final_metrics(loop, passes, test=test)
        networks = {"student": loop.model.state_dict(), "teacher": loop.frozen_models["teacher"].state_dict()}
        torch.save({"metrics": metrics.to_dict(), **networks}, folder / f"{name}-{rank}.pt")
        return metrics

    engine._final_metrics = kept
    with pytest.raises(Stopped):
        engine.run(EXPERIMENT, WorkerDiary(folder / "stopped", rank, stop_after=2 * STEPS + 1), device=CPU)
    for name in ("whole", "stopped", "joined"):
        engine.run(EXPERIMENT, WorkerDiary(folder / name, rank), device=CPU)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two workers ran every scenario; one worker had begun with `joined`."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(Stopped, match="the checkpoint is"):
        engine.run(EXPERIMENT, Diary(folder / "joined", stop_after=STEPS + 1), device=CPU)
    on_two_ranks(worker, folder)
    return folder


def held(folder: Path, name: str) -> list[dict[str, Any]]:
    """Metrics and networks of both ranks."""
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def loaders(folder: Path, name: str) -> list[dict[str, Any]]:
    """What both ranks' loaders left in the last checkpoint."""
    (last,) = sorted((folder / name).glob("checkpoint-0*"))[-1:]
    found = [read_own(last, rank) for rank in (0, 1)]
    return [own["loader"] for own in found if own is not None]


@pytest.mark.parametrize("name", ["whole", "stopped", "joined"])
def test_both_ranks_hold_the_same_networks(name: str, two: Path):
    first, second = held(two, name)
    assert same(first["teacher"], second["teacher"])
    assert same(first["student"], second["student"])
    generators = [loader["synthesizer"]["generator"] for loader in loaders(two, name)]
    assert same(*generators)
    memories = [loader["synthesizer"]["memory"] for loader in loaders(two, name)]
    assert all(torch.equal(a, b) for a, b in zip(*memories, strict=True))


def test_each_rank_makes_images_of_its_own(two: Path):
    first, second = (loader["pool"]["images"] for loader in loaders(two, "whole"))
    assert first.shape == second.shape == (128, 1, 8, 8)
    assert not torch.equal(first, second)


def test_both_ranks_report_the_same(two: Path):
    first, second = (rank["metrics"] for rank in held(two, "whole"))
    names = ("accuracy", "teacher_accuracy", "val_agreement", "val_loss", "pool_images", "samples_shown")
    names += ("synthesis_loss", "synthesis_bn", "train_flops")
    assert all(first[name] == second[name] for name in names)
    assert first["samples_shown"] == 3 * STEPS * 16


def test_the_images_of_both_ranks_cost_flops(two: Path):
    whole, resumed, joined = (held(two, name)[0]["metrics"] for name in ("whole", "stopped", "joined"))
    assert whole["train_flops"] == resumed["train_flops"]
    assert joined["train_flops"] < whole["train_flops"]  # one worker made the images of the first calls


def test_two_workers_resume_bit_for_bit(two: Path):
    for resumed, whole in zip(held(two, "stopped"), held(two, "whole"), strict=True):
        assert same(resumed["student"], whole["student"])
        assert same(resumed["teacher"], whole["teacher"])
        assert resumed["metrics"]["val_agreement"] == whole["metrics"]["val_agreement"]
