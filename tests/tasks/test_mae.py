"""Masked image modelling: targets by hand, the probe against scikit-learn's, and runs of the whole engine."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import on_two_ranks
from sklearn.linear_model import Ridge
from torch import Tensor

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.models.mae import Features, Reconstruction
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.mae import (
    RIDGE,
    LinearProbe,
    MaskedImages,
    filled_in,
    hog,
    patchified,
    targets_of,
)

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from engine_runs import CPU, Diary, WorkerDiary, run, same, trained, untimed, weights

TINY = {
    "data.image_size": 8,
    "data.val_fraction": 0.84,
    "model.options": {
        **{"patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2},
        **{"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    },
    "train.epochs": 3,
    "train.eval_every": 0,
    "train.lr": 0.005,
    "pruning.anneal_from": 0.9,
}


def tiny(overrides: dict[str, Any] | None = None) -> Experiment:
    return load_experiment("digits-mae", TINY | (overrides or {}))


def patches_of(image: np.ndarray, side: int) -> list[np.ndarray]:
    """(side, side, C) each, row by row."""
    size = image.shape[1]
    return [
        image[:, row : row + side, column : column + side].transpose(1, 2, 0)
        for row in range(0, size, side)
        for column in range(0, size, side)
    ]


@pytest.mark.parametrize("what", ["normalised-pixels", "pixels"])
def test_losses_are_mean_squared_errors_over_masked_patches(what: Any) -> None:
    images = torch.randn(3, 2, 6, 6)
    prediction, masked = torch.randn(3, 9, 8), torch.rand(3, 9) < 0.6
    masked[:, 0] = True
    asked: list[Any] = []

    def model(*inputs: Any) -> Reconstruction:
        asked.extend(inputs)
        return Reconstruction(prediction, masked)

    found = MaskedImages(0.6, what).losses(model, {"inputs": images, "draws": torch.arange(3)})
    assert asked[0] is images and asked[1].tolist() == [0, 1, 2] and asked[2] == 0.6
    for sample in range(3):
        errors = []
        for place, patch in enumerate(patches_of(images[sample].double().numpy(), 2)):
            target = patch.flatten()
            if what == "normalised-pixels":
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
            if masked[sample, place]:
                errors.append(np.square(prediction[sample, place].numpy() - target).mean())
        assert found.losses[sample].item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert torch.equal(found.losses, found.scores)


def test_a_histogram_is_counted_pixel_by_pixel() -> None:
    images = torch.randn(2, 3, 32, 32)
    found = hog(images, 16)
    assert found.shape == (2, 4, 3 * 4 * 9)
    padded = np.pad(images[1].double().numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    cells = np.zeros((27, 4, 4))
    for channel in range(3):
        for y in range(32):
            for x in range(32):
                dx = padded[channel, y + 1, x + 2] - padded[channel, y + 1, x]
                dy = padded[channel, y + 2, x + 1] - padded[channel, y, x + 1]
                degrees = math.degrees(math.atan2(dy, dx)) % 180
                cells[channel * 9 + int(degrees // 20) % 9, y // 8, x // 8] += math.hypot(dx, dy)
    for channel in range(3):
        part = cells[channel * 9 : channel * 9 + 9]
        part /= np.linalg.norm(part, axis=0)
    expected = torch.from_numpy(np.stack([patch.flatten() for patch in patches_of(cells, 2)]))
    torch.testing.assert_close(found[1].double(), expected, rtol=1e-3, atol=1e-4)
    assert hog(images, 4).shape == (2, 64, 27), "a small patch is one cell"
    torch.testing.assert_close(targets_of(images, 4, "hog"), found)


def test_patches_lie_in_rows() -> None:
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    expected = np.stack([[patch.flatten() for patch in patches_of(image, 2)] for image in images.numpy()])
    assert torch.equal(patchified(images, 2), torch.from_numpy(expected))


def test_the_probe_is_scikit_learns_ridge_regression() -> None:
    """On features scaled to mean 0 and variance 1; from sums of two workers' batches."""
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (300,), generator=rng)
    features = torch.randn(300, 6, generator=rng) * torch.tensor([1, 10, 0.1, 1, 1, 0.0]) + 3
    features[:, 0] += target
    parts = [
        LinearProbe.summary(features[rows], target[rows], 4) for rows in (slice(0, 100), slice(100, 300))
    ]
    found = LinearProbe.fitted(parts[0] + parts[1])(features)
    x = features.double().numpy()
    scaled = (x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1)
    ridge = Ridge(alpha=300 * RIDGE).fit(scaled, np.eye(4)[target.numpy()])
    torch.testing.assert_close(found, torch.from_numpy(ridge.predict(scaled)), rtol=1e-3, atol=1e-4)


def test_the_metric_is_the_probes_accuracy() -> None:
    """Features that tell the classes apart, whatever is reconstructed."""
    target = torch.arange(30) % 3
    features = torch.nn.functional.one_hot(target, 3).float()

    def model(images: Tensor, keys: Tensor | None = None, _: float = 0.0) -> Features | Reconstruction:
        if keys is None:
            return Features(features[images[:, 0, 0, 0].long()], 3)
        return Reconstruction(torch.zeros(len(images), 4, 4), torch.ones(len(images), 4, dtype=torch.bool))

    images = torch.arange(30).float().view(30, 1, 1, 1).expand(30, 1, 4, 4)
    batch = {"inputs": images, "target": target, "draws": torch.arange(30)}
    task = MaskedImages(reconstruct="pixels")
    assert (task.ranking.name, task.ranking.direction) == ("probe_accuracy", "max")
    task.fit(task.summary(model, batch))
    assert task.metrics(task.totals(model, batch), "val")["probe_accuracy"] == 100
    wrong = batch | {"target": (target + (torch.arange(30) < 3)) % 3}
    found = task.metrics(task.totals(model, wrong), "val")
    assert found["probe_accuracy"] == pytest.approx(90)
    assert (
        found["loss"]
        == found["reconstruction_error"]
        == pytest.approx(float(np.square(np.arange(30)).mean()))
    )
    without = MaskedImages(probe_samples=0)
    assert (without.metric, without.direction, without.targets) == ("reconstruction_error", "min", None)
    assert "probe_accuracy" not in without.metrics(torch.ones(3), "val")


def test_it_is_pruned_judged_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole, expected, diary = trained(tiny(), tmp_path / "whole")
    assert whole["metric"] == "probe_accuracy" and 20 < whole["probe_accuracy"] <= 100
    assert whole["passes_saved"] > 0.05 and whole["train_flops"] > 0
    assert diary.epochs[-1]["train_loss"] < diary.epochs[0]["train_loss"]
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path / "parts", stop_after=6), device=CPU)
    again, resumed, _ = trained(tiny(), tmp_path / "parts")
    assert untimed(again) == untimed(whole) and same(resumed, expected)


@pytest.mark.parametrize("what", ["normalised-pixels", "pixels"])
def test_what_is_filled_in_is_the_image_where_the_prediction_is_right(what: Any) -> None:
    """Given the very targets as a prediction, the image comes back; given others, only masked patches change."""
    plain = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    inputs = (plain / 255 - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor(0.25)
    masked = torch.tensor([[True, False, False, True], [False, True, True, True]])
    seen, filled = filled_in(inputs, plain, targets_of(inputs, 4, what), masked, what)
    assert (filled.int() - plain.int()).abs().max() <= 1
    _, wrong = filled_in(inputs, plain, torch.zeros(2, 4, 48), masked, what)
    for sample in range(2):
        for patch in range(4):
            row, column = patch // 2 * 4, patch % 2 * 4
            part = (sample, slice(None), slice(row, row + 4), slice(column, column + 4))
            if masked[sample, patch]:
                assert (seen[part] == 127).all() and not torch.equal(wrong[part], plain[part])
            else:
                assert torch.equal(seen[part], plain[part]) and torch.equal(wrong[part], plain[part])


def test_a_run_leaves_pictures(tmp_path: Path) -> None:
    trained(tiny({"train.epochs": 1, "train.eval_every": 1}), tmp_path)
    with Image.open(tmp_path / "images" / "reconstructions-0001.png") as image:
        assert image.size == (8 * 9 + 1, 3 * 9 + 1)


def test_without_a_probe_the_error_ranks_runs(tmp_path: Path) -> None:
    found, _, _ = trained(tiny({"task.probe_samples": 0}), tmp_path)
    assert (found["metric"], found["direction"]) == ("reconstruction_error", "min")
    assert found["reconstruction_error"] == found["test_loss"] and "probe_accuracy" not in found


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_a_curriculum_of_sizes(loader: str, tmp_path: Path) -> None:
    keys = {"data.image_size": 16, "curriculum.method": "efficienttrain++", "data.loader": loader}
    found, _, _ = trained(tiny(keys | {"data.num_workers": 0, "train.epochs": 2}), tmp_path)
    assert found["samples_shown"] > 2.2 * 230 and found["probe_accuracy"] > 20


BY_SGD = {"train.optimizer": "sgd", "train.lr": 0.05}
"""AdamW makes whole steps of the rounding of a gradient that is zero, as that of an attention's key bias is."""


def worker(rank: int, folder: Path) -> dict[str, Any]:
    return run(tiny(BY_SGD), WorkerDiary(folder, rank), device=CPU)


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    whole, expected, _ = trained(tiny(BY_SGD), tmp_path / "one")
    (tmp_path / "two").mkdir()
    _, found = on_two_ranks(worker, tmp_path / "two")
    torch.testing.assert_close(weights(Diary(tmp_path / "two")), expected, rtol=1e-3, atol=1e-4)
    assert found["reconstruction_error"] == pytest.approx(whole["reconstruction_error"], rel=1e-4)
    assert found["probe_accuracy"] == pytest.approx(whole["probe_accuracy"], abs=0.5)


def test_fewer_training_samples_for_the_probe_are_taken_evenly(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[Tensor] = []
    summary = MaskedImages.summary

    def noting(self: MaskedImages, model: Any, batch: Any) -> Tensor:
        seen.append(batch["index"])
        return summary(self, model, batch)

    monkeypatch.setattr(MaskedImages, "summary", noting)
    trained(tiny({"task.probe_samples": 20, "train.epochs": 1}), tmp_path)
    index = torch.cat(seen[: len(seen) // 2])
    assert len(index) == 20 and index.diff().unique().tolist() == [11, 12] and index[0] == 0


def test_pre_training_is_followed_by_ordinary_runs(tmp_path: Path) -> None:
    """Fine-tuning and a linear probe from the run's own file: better than from scratch at so small a budget."""
    trained(tiny({"train.epochs": 10}), tmp_path / "mae")
    (last,) = sorted((tmp_path / "mae").glob("checkpoint-*"))[-1:]
    encoder = {key: TINY["model.options"][key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    keys = {
        "task": {"kind": "classification"},
        "model": {
            "name": "timm/vit_tiny_patch16_224",
            "options": encoder,
            "pretrained": str(last / "model.pt"),
        },
        "train.epochs": 10,
        "train.lr": 0.02,
    }
    tuned, _, _ = trained(tiny(keys), tmp_path / "tuned")
    probed, after, _ = trained(tiny(keys | {"model.head_only": True, "train.lr": 0.1}), tmp_path / "probe")
    assert (tuned["accuracy"], probed["accuracy"]) > (15, 30), (tuned["accuracy"], probed["accuracy"])
    before = torch.load(last / "model.pt", weights_only=True)
    assert all(
        torch.equal(after[key.removeprefix("encoder.")], before[key]) for key in before if "encoder" in key
    )


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'hog' has 9; expected model\.options\.decoder_outputs: 9"):
        run(tiny({"task.reconstruct": "hog"}), Diary(tmp_path / "a"), device=CPU)
    with pytest.raises(UserError, match="make no step"):
        run(tiny({"model": {"name": "resnet8"}}), Diary(tmp_path / "b"), device=CPU)
    with pytest.raises(UserError, match=r"train\.mixup: 0\.2 is not allowed"):
        tiny({"train.mixup": 0.2})
