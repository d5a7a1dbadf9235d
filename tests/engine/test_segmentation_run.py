"""Segmentation through the whole engine: pruned, at low bandwidth, resumed, and from a teacher without data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_runs import CPU, Diary, run, same, trained, weights
from PIL import Image
from tiny_scenes import SIDE, camvid, write_scenes

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.methods.distillation import evaluation_set
from raytrain_speedup.settings import UserError

LRASPP, DEEPLAB = "torchvision/lraspp_mobilenet_v3_large", "torchvision/deeplabv3_mobilenet_v3_large"
IMAGE_CLASSES = {"task.kind": "classification", "data.source": "digits"}


@pytest.fixture(scope="module", autouse=True)
def quick_evaluation() -> Iterator[None]:
    """The set that students are judged on is made in moments: what is in it does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_set, "STEPS", 1)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def test_the_metrics_of_a_run(scenes, tmp_path):
    metrics, _, diary = trained(camvid(scenes, {"train.eval_every": 1}), tmp_path)
    assert 0 <= metrics["miou"] <= 100 and 0 < metrics["pixel_accuracy"] <= 100
    assert {"val_miou", "val_loss", "test_loss"} <= metrics.keys() and "accuracy" not in metrics
    assert diary.epochs[-1]["train_loss"] < diary.epochs[0]["train_loss"]
    assert metrics["test_samples"] == 6
    with Image.open(tmp_path / "images" / "decisions-0003.png") as image:
        columns, rows = 6, 3  # images of the validation split: as they are, their masks, the decisions
        assert image.size == (columns * (SIDE + 1) + 1, rows * (SIDE + 1) + 1)


PRUNED = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 1.0}
LOW = {"curriculum.method": "custom", "curriculum.stages": [[0.5, 16, None], [1.0, None, None]]}


@pytest.mark.parametrize("overrides", [PRUNED, {"train.mixup": 0.3}], ids=["pruned", "mixup"])
def test_resumed_it_gives_the_numbers_of_the_uninterrupted_run(scenes, tmp_path, overrides):
    experiment = camvid(scenes, overrides)
    whole, expected, diary = trained(experiment, tmp_path / "whole")
    if "pruning.method" in overrides:
        assert whole["passes_saved"] > 0.05
    with pytest.raises(Stopped):
        run(experiment, Diary(tmp_path / "part", stop_after=diary.steps - 2), device=CPU)
    resumed = Diary(tmp_path / "part")
    metrics = run(experiment, resumed, device=CPU)
    assert metrics["miou"] == whole["miou"] and same(weights(resumed), expected)


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_low_bandwidth_first(scenes, tmp_path, loader):
    keys = {"curriculum.method": "efficienttrain", "data.loader": loader, "data.num_workers": 0}
    metrics, _, _ = trained(camvid(scenes, keys), tmp_path)
    assert metrics["compute_spent"] == pytest.approx(3, rel=0.1) and metrics["samples_shown"] > 3 * 18


DATA_FREE = {
    "teacher.train.epochs": 2,
    "teacher.train.batch_size": 6,
    "train.epochs": 2,
    "train.batch_size": 8,
    "distillation.batch_size": 16,
    "distillation.warmup": 1,
    "distillation.student_steps": 2,
    "distillation.pool_images": 64,
}


def without_data(scenes, method: str = "fastdfkd", **more: Any) -> Experiment:
    small = {} if method in ("noise", "deepinversion", "real") else {"width": 8, "latent": 16}
    if method in ("fastdfkd", "cmi", "deepinversion"):
        small["steps"] = 2
    own = {f"distillation.{key}": value for key, value in small.items()}
    return camvid(scenes, {"distillation.method": method} | DATA_FREE | own | more, "camvid-dfkd")


DENSE = ["fastdfkd", "real", *(pytest.param(other, marks=pytest.mark.slow) for other in ("zskt", "noise"))]


@pytest.mark.parametrize("method", DENSE)
def test_a_student_that_never_sees_a_scene(scenes, tmp_path, method):
    metrics, _, diary = trained(without_data(scenes, method), tmp_path)
    assert 0 <= metrics["teacher_miou"] <= 100 and 0 <= metrics["miou"] <= 100
    assert 0 <= metrics["val_agreement"] <= 100 and "val_miou" not in metrics
    assert metrics["pool_images"] > 0 and len(diary.epochs) == 2


def test_without_data_resumed(scenes, tmp_path):
    experiment = without_data(scenes)
    _, expected, diary = trained(experiment, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(experiment, Diary(tmp_path / "part", stop_after=diary.steps - 1), device=CPU)
    resumed = Diary(tmp_path / "part")
    run(experiment, resumed, device=CPU)
    assert same(weights(resumed), expected)


def test_another_network_learns_from_it(scenes, tmp_path):
    metrics, _, _ = trained(
        without_data(scenes, **{"teacher.model.name": DEEPLAB, "model.name": LRASPP}), tmp_path
    )
    assert 0 < metrics["pixel_accuracy"] < 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"task.kind": "classification"},
            r"task\.kind: 'classification' .* has masks; expected 'segmentation'",
        ),
        ({"model.name": "resnet8"}, r"model\.name: resnet8 .* not 2 logits for each pixel"),
        ({"train.cutmix": 1.0}, r"train\.cutmix: 1 is not allowed; expected 0 in segmentation"),
    ],
)
def test_what_does_not_fit_is_refused(scenes, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        run(camvid(scenes, overrides), Diary(tmp_path), device=CPU)


def test_masks_are_asked_for_where_the_task_needs_them(tmp_path):
    with pytest.raises(
        UserError, match=r"task\.kind: 'segmentation' .* has classes; expected 'classification'"
    ):
        run(load_experiment("digits", {"task.kind": "segmentation"}), Diary(tmp_path), device=CPU)
