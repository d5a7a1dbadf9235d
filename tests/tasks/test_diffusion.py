"""Diffusion: losses and samples against float64 forms written by hand and diffusers' own, distances against
torchmetrics', and runs of the whole engine."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from scipy.stats import chisquare, kstest
from sklearn.datasets import load_digits
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.methods.pruning import InfoBatch
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.diffusion import Diffusion, gaussian
from raytrain_speedup.tasks.features import RandomFeatures
from raytrain_speedup.tasks.frechet import feature_moments, frechet_distance

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "engine"))
from engine_runs import CPU, Diary, WorkerDiary, run, same, trained, untimed, weights
from ranks import on_two_ranks
from refused_imports import run_without

UNET = {
    **{"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False},
    **{"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
}
TINY = {
    "data.val_fraction": 0.84,
    "task.generated": 40,
    "task.sampling_steps": 3,
    "model.options": UNET,
    "train.epochs": 4,
    "train.eval_every": 0,
    "pruning.anneal_from": 0.9,
}


def tiny(overrides: dict[str, Any] | None = None) -> Experiment:
    return load_experiment("digits-diffusion", TINY | (overrides or {}))


def alphas_by_hand(schedule: str, timesteps: int) -> np.ndarray:
    """The fraction of the image's variance that is left at each time step, float64."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, timesteps)
    else:  # Nichol and Dhariwal 2021, eq. 17
        curve = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    return np.cumprod(1 - betas)


class Asked:
    """A network that notes what it is asked, and finds a tenth of what it is given."""

    def __init__(self) -> None:
        self.noisy, self.timesteps = torch.empty(0), torch.empty(0)

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        self.noisy, self.timesteps = noisy, timesteps
        return noisy / 10


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_losses_are_those_of_the_paper(schedule: Any) -> None:
    """Ho et al., eq. 14; what is added to the images is recovered from what the network is shown."""
    images, model = torch.rand(64, 2, 4, 4) * 2 - 1, Asked()
    task = Diffusion(timesteps=200, beta_schedule=schedule, timestep_bins=7)
    found = task.losses(model, {"inputs": images, "draws": torch.arange(64)})
    kept = alphas_by_hand(schedule, 200)[model.timesteps.numpy()][:, None, None, None]
    noise = (model.noisy.double().numpy() - np.sqrt(kept) * images.double().numpy()) / np.sqrt(1 - kept)
    noisy_enough = (
        kept[:, 0, 0, 0] < 0.99
    )  # at the first steps float32 has too little of the noise to recover it
    expected = np.square(model.noisy.double().numpy() / 10 - noise).mean((1, 2, 3))
    np.testing.assert_allclose(found.losses.numpy()[noisy_enough], expected[noisy_enough], rtol=1e-3)
    assert kstest(noise[noisy_enough].ravel(), "norm").pvalue > 0.01
    scheduler = DDPMScheduler(num_train_timesteps=200, beta_schedule=schedule)
    theirs = scheduler.add_noise(images, torch.from_numpy(noise).float(), model.timesteps)
    torch.testing.assert_close(theirs[noisy_enough], model.noisy[noisy_enough], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.scores, found.losses)
    assert found.strata is not None
    assert found.strata.tolist() == [int(t) * 7 // 200 for t in model.timesteps]


def test_time_steps_are_drawn_evenly_from_all_for_each_key_alone() -> None:
    model, task = Asked(), Diffusion(timesteps=10)

    def timesteps_and_losses(draws: Tensor) -> tuple[list[int], Tensor]:
        found = task.losses(model, {"inputs": torch.zeros(len(draws), 1, 2, 2), "draws": draws})
        return model.timesteps.tolist(), found.losses

    keys = torch.arange(5000) * 977
    drawn, losses = timesteps_and_losses(keys)
    assert chisquare(np.bincount(drawn, minlength=10)).pvalue > 0.01 and set(drawn) == set(range(10))
    some = torch.tensor([4000, 7, 123])
    again, alone = timesteps_and_losses(keys[some])
    assert again == [drawn[i] for i in some] and torch.equal(alone, losses[some])


def test_noise_is_normal_and_independent() -> None:
    noise = gaussian(torch.arange(400), (3, 4, 4), (1, 2))
    assert noise.shape == (400, 3, 4, 4) and kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    related = np.corrcoef(noise.flatten(1).T.numpy()) - np.eye(48)
    assert np.abs(related).max() < 5 / math.sqrt(400), "pixels of an image"
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.03, "images of keys in a row"
    assert not torch.equal(noise, gaussian(torch.arange(400), (3, 4, 4), (3, 4)))


def test_samples_are_made_by_ddim() -> None:
    """Song et al., eq. 12 without noise, predicted images clipped to [-1, 1], in float64; a network whose answers
    lie under `sample`, as diffusers' do."""
    keys, shape, steps = torch.tensor([3, 99]), (1, 4, 4), 5
    seen: list[int] = []

    def model(noisy: Tensor, timesteps: Tensor) -> SimpleNamespace:
        assert timesteps.shape == (2,)
        seen.append(int(timesteps[0]))
        return SimpleNamespace(sample=(noisy * 0.9).sin())

    task = Diffusion(timesteps=100, beta_schedule="linear", sampling_steps=steps)
    found = task.sampled(model, keys, shape)
    kept = alphas_by_hand("linear", 100)
    images = gaussian(keys, shape, (3, 4)).double().numpy()
    for timestep in (80, 60, 40, 20, 0):
        noise = np.sin(images * 0.9)
        clean = (images - np.sqrt(1 - kept[timestep]) * noise) / np.sqrt(kept[timestep])
        before = kept[timestep - 20] if timestep else 1.0
        images = np.sqrt(before) * clean.clip(-1, 1) + np.sqrt(1 - before) * noise
    assert seen == [80, 60, 40, 20, 0]
    np.testing.assert_allclose(found.numpy(), images.clip(-1, 1), rtol=1e-4, atol=1e-5)


def test_the_distance_is_torchmetrics() -> None:
    """On the same features; from the sums of two workers' batches."""
    rng = torch.Generator().manual_seed(0)
    real, made = (torch.rand(90, 3, 16, 16, generator=rng) * width - 1 for width in (2.0, 1.6))
    network = RandomFeatures(3)
    theirs = FrechetInceptionDistance(feature=network, normalize=True)
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    sums = [sum(feature_moments(network(part)) for part in images.split(50)) for images in (real, made)]
    assert frechet_distance(*sums) == pytest.approx(float(theirs.compute()), rel=1e-3)
    assert frechet_distance(sums[0], sums[0]) == pytest.approx(0, abs=1e-4)
    assert math.isnan(frechet_distance(sums[0], feature_moments(network(real[:1]))))


def test_the_distance_grows_with_what_is_wrong_with_images() -> None:
    """Digits: noise, blur, classes that are missing, few different images; other digits are the closest."""
    digits = load_digits()
    images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32).unsqueeze(1)
    held, given, classes = images[:600], images[600:], digits.target[600:]
    network = RandomFeatures(1)

    def distance(made: Tensor) -> float:
        return frechet_distance(feature_moments(network(held)), feature_moments(network(made)))

    some, noise = given[:500], torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(some, (1, 1, 1, 1), mode="replicate")
    blurred = torch.nn.functional.avg_pool2d(padded, 3, 1)
    worse = {
        "noise": [distance((some + level * noise).clamp(-1, 1)) for level in (0.0, 0.1, 0.2, 0.6)],
        "blur": [distance(some.lerp(blurred, level)) for level in (0.0, 0.3, 1.0)],
        "classes": [distance(given[classes < count][:500]) for count in (10, 7, 4)],
        "copies": [distance(some[:count].repeat(500 // count, 1, 1, 1)) for count in (500, 20, 5)],
    }
    for what, distances in worse.items():
        assert distances == sorted(distances) and distances[-1] > 2 * distances[0], (what, distances)


def test_metrics_are_of_images_made_for_the_first_of_a_split() -> None:
    task, model = Diffusion(generated=5, sampling_steps=2), Asked()
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parts = [
        {"inputs": images[rows], "index": rows, "draws": rows * 31} for rows in torch.arange(12).split(7)
    ]
    totals = sum(task.totals(model, part) for part in parts)
    found = task.metrics(totals, "val")
    made, network = task.sampled(model, torch.arange(5) * 31, (1, 8, 8)), RandomFeatures(1)
    expected = frechet_distance(feature_moments(network(images)), feature_moments(network(made)))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    errors = task.losses(model, {"inputs": images, "draws": torch.arange(12) * 31}).losses
    assert found["loss"] == found["denoising_error"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert (task.ranking.name, task.ranking.direction) == ("frechet_distance", "min")
    without = Diffusion(generated=0)
    assert (without.ranking.name, without.ranking.direction) == ("denoising_error", "min")
    assert without.metrics(without.totals(model, parts[0]), "val").keys() == {"loss", "denoising_error"}


def test_it_is_pruned_judged_and_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the averages over visits and the strata that pruning goes by; interrupted within a pruned epoch."""
    told: list[Tensor] = []
    stratify = InfoBatch.stratify

    def noting(self: InfoBatch, index: Tensor, strata: Tensor) -> None:
        told.append(strata)
        stratify(self, index, strata)

    monkeypatch.setattr(InfoBatch, "stratify", noting)
    whole, expected, diary = trained(tiny(), tmp_path / "whole")
    assert (whole["metric"], whole["direction"]) == ("frechet_distance", "min")
    assert whole["frechet_distance"] > 0 and 0.05 < whole["passes_saved"] < 0.5 and whole["train_flops"] > 0
    assert diary.epochs[-1]["train_loss"] < diary.epochs[0]["train_loss"]
    assert len(torch.cat(told).unique()) == 20 and sum(map(len, told)) == whole["samples_shown"]
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path / "parts", stop_after=6), device=CPU)
    again, resumed, _ = trained(tiny(), tmp_path / "parts")
    assert untimed(again) == untimed(whole) and same(resumed, expected)
    with Image.open(next((tmp_path / "whole" / "images").glob("samples-*.png"))) as image:
        assert image.size == (8 * 9 + 1, 2 * 9 + 1)


def test_parts_of_a_batch_make_its_step(tmp_path: Path) -> None:
    """What is drawn for a sample does not depend on the part it is computed in, nor does what pruning is told."""
    whole, expected, _ = trained(tiny(BY_SGD), tmp_path / "whole")
    parts, found, _ = trained(tiny(BY_SGD | {"train.accumulate": 2}), tmp_path / "parts")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert parts["samples_shown"] == whole["samples_shown"]


BY_SGD = {"train.optimizer": "sgd", "train.lr": 0.05}
"""AdamW makes whole steps of the rounding of a gradient that is zero."""


def worker(rank: int, folder: Path) -> dict[str, Any]:
    return run(tiny(BY_SGD), WorkerDiary(folder, rank), device=CPU)


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    whole, expected, _ = trained(tiny(BY_SGD), tmp_path / "one")
    (tmp_path / "two").mkdir()
    _, found = on_two_ranks(worker, tmp_path / "two")
    torch.testing.assert_close(weights(Diary(tmp_path / "two")), expected, rtol=1e-3, atol=1e-4)
    assert found["samples_shown"] == whole["samples_shown"]
    assert found["denoising_error"] == pytest.approx(whole["denoising_error"], rel=1e-4)
    assert found["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-3)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.mean: \[0\.305\] is not allowed; expected \[0\.5\] in diffusion"
    ):
        tiny({"data.mean": [0.305]})
    with pytest.raises(
        UserError, match=r"sampling_steps: 20 is not allowed; expected at most timesteps \(10\)"
    ):
        tiny({"task.timesteps": 10, "task.sampling_steps": 20})
    with pytest.raises(UserError, match=r"data\.std: .*expected \[0\.5\]"):
        tiny({"data.std": [0.3]})
    with pytest.raises(UserError, match="make no step"):
        run(tiny({"model": {"name": "resnet8"}}), Diary(tmp_path / "b"), device=CPU)


def test_without_diffusers_the_message_names_the_extra() -> None:
    program = """
import torch
from raytrain_speedup.config import load_experiment
from raytrain_speedup.models import build_model
from raytrain_speedup.settings import UserError
experiment = load_experiment("digits-diffusion")
for attempt in (
    lambda: build_model(experiment.model, num_classes=10, image_size=8, dense=None),
    lambda: experiment.task.build().sampled(None, torch.arange(2), (1, 8, 8)),
):
    try:
        attempt()
    except UserError as error:
        print(error)
"""
    found = run_without(("diffusers",), program)
    missing = "diffusers is not installed; expected pip install 'raytrain-speedup[diffusion]'"
    asked = ("model.name: diffusers/UNet2DModel", "task.kind: diffusion")
    assert found.stdout.splitlines() == [f"{key}: {missing}" for key in asked], found.stderr
