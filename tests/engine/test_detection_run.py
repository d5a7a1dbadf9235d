"""Detection through the whole engine: judged, pruned, at low bandwidth, resumed, and by two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, Diary, WorkerDiary, run, same, trained, untimed, weights
from PIL import Image
from ranks import on_two_ranks
from tiny_boxes import SIDE, boxed, write_boxes

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.settings import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("boxes"))


OWN = {
    "model": {"name": "tiny_boxes:faster_rcnn"},
    **{"train.optimizer": "sgd", "train.lr": 0.02, "train.warmup": 0},
}
"""A detector of torchvision that is built elsewhere; AdamW makes whole steps of the rounding of a zero gradient."""


@pytest.mark.parametrize("model", [OWN, pytest.param({}, marks=pytest.mark.slow)], ids=["own", "ssdlite"])
def test_the_metrics_of_a_run(scenes: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    metrics, _, diary = trained(boxed(scenes, model | {"train.epochs": 2, "train.eval_every": 2}), tmp_path)
    assert 0 <= metrics["map"] <= metrics["ap50"] <= 100 and metrics["test_samples"] == 6
    assert {"val_map", "val_ap50", "val_loss", "test_loss"} <= metrics.keys()
    assert diary.epochs[-1]["train_loss"] < diary.epochs[0]["train_loss"]
    assert metrics["train_flops"] > 0
    with Image.open(tmp_path / "images" / "decisions-0002.png") as image:
        assert image.size == (6 * (SIDE + 1) + 1, 2 * (SIDE + 1) + 1)


PRUNED = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 1.0}


def test_resumed_it_gives_the_numbers_of_the_uninterrupted_run(scenes: Path, tmp_path: Path) -> None:
    """Pruned, and stopped in the middle of an epoch; which anchors are learnt from is drawn."""
    experiment = boxed(scenes, PRUNED | OWN)
    whole, expected, diary = trained(experiment, tmp_path / "whole")
    assert whole["passes_saved"] > 0.05
    with pytest.raises(Stopped):
        run(experiment, Diary(tmp_path / "part", stop_after=diary.steps - 2), device=CPU)
    resumed = Diary(tmp_path / "part")
    metrics = run(experiment, resumed, device=CPU)
    assert metrics["map"] == whole["map"] and same(weights(resumed), expected)


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_low_bandwidth_first(scenes: Path, tmp_path: Path, loader: str) -> None:
    keys = {"curriculum.method": "efficienttrain", "data.loader": loader, "data.num_workers": 0}
    metrics, _, _ = trained(boxed(scenes, OWN | keys), tmp_path)
    assert metrics["compute_spent"] == pytest.approx(3, rel=0.1) and metrics["samples_shown"] > 3 * 18


def worker(rank: int, scenes: Path, folder: Path) -> dict[str, Any]:
    return run(boxed(scenes, OWN), WorkerDiary(folder, rank), device=CPU)


def test_two_workers_take_the_steps_of_one(scenes: Path, tmp_path: Path) -> None:
    """What a sample draws does not depend on who shows it, and the average precision is that of all images."""
    whole, expected, _ = trained(boxed(scenes, OWN), tmp_path / "one")
    (tmp_path / "two").mkdir()
    first, second = on_two_ranks(worker, scenes, tmp_path / "two")
    torch.testing.assert_close(weights(Diary(tmp_path / "two")), expected, rtol=1e-3, atol=1e-4)
    assert untimed(first)["map"] == second["map"]
    for name in ("map", "ap50", "test_loss"):
        assert first[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-3), name


def test_what_does_not_fit_is_refused(scenes: Path, tmp_path: Path) -> None:
    for overrides, message in (
        ({"model": {"name": "resnet8"}}, r"task\.kind: detection and model\.name 'resnet8' make no step"),
        ({"task": {"kind": "classification"}}, r"'classification' .* has boxes; expected 'detection'"),
        ({"train.cutmix": 1.0}, r"train\.cutmix: 1 is not allowed; expected 0 in detection"),
    ):
        with pytest.raises(UserError, match=message):
            run(boxed(scenes, overrides), Diary(tmp_path), device=CPU)
    with pytest.raises(UserError, match=r"'detection' .* has classes; expected 'classification'"):
        run(load_experiment("digits", {"task": {"kind": "detection"}}), Diary(tmp_path), device=CPU)
