"""Whose features images are compared by: classifiers of the package, FID's Inception, and what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from raytrain_speedup.config import load_experiment
from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks.features import FeatureSettings, build_features
from raytrain_speedup.tasks.frechet import feature_moments, frechet_distance

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from engine_runs import CPU, Diary, run


def classifier(folder: Path, **of: Any) -> tuple[nn.Module, Path]:
    """A ResNet-8 whose batch statistics are no longer fresh, and its file."""
    shape = {"num_classes": 10, "in_channels": 1, "image_size": 8} | of
    network = build_model(ModelSettings(name="resnet8"), **shape)
    network(torch.randn(64, shape["in_channels"], 8, 8))
    torch.save(network.state_dict(), folder / "model.pt")
    return network.eval(), folder / "model.pt"


def test_a_classifiers_are_the_inputs_of_its_last_layer(tmp_path: Path) -> None:
    """The distance is torchmetrics' with the same network, given images as the classifier was."""
    network, path = classifier(tmp_path)
    before = torch.get_rng_state()
    settings = FeatureSettings(network="resnet8", weights=path, mean=(0.3,), std=(0.2,))
    features = build_features(settings, (1, 8, 8))
    assert torch.equal(before, torch.get_rng_state()), "the run's own numbers go on as they would"
    rng = torch.Generator().manual_seed(0)
    real, made = (torch.rand(150, 1, 8, 8, generator=rng) * width for width in (1.0, 0.8))
    last = next(module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear))
    with torch.no_grad():
        found = features(2 * real - 1)
        torch.testing.assert_close(last(found), network((real - 0.3) / 0.2), rtol=1e-4, atol=1e-5)

    class Given(nn.Module):
        num_features = found.shape[1]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return features(2 * images - 1)

    theirs = FrechetInceptionDistance(feature=Given(), normalize=True)
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    moments = [feature_moments(features(2 * images - 1)) for images in (real, made)]
    assert frechet_distance(*moments) == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_what_does_not_fit_is_refused_before_a_training(tmp_path: Path) -> None:
    _, path = classifier(tmp_path)
    (tmp_path / "text.pt").write_text("none")
    for keys, shape, said in (
        ({"network": "resnet18", "weights": path}, (1, 8, 8), "task.features: .*another network than ResNet"),
        ({"network": "resnet8", "weights": path}, (3, 8, 8), "task.features: .*shape .*needs"),
        ({"network": "resnet9", "weights": path}, (1, 8, 8), "task.features: .*resnet9"),
        (
            {"network": "resnet8", "weights": tmp_path / "text.pt"},
            (1, 8, 8),
            "task.features.weights: cannot read",
        ),
        (
            {"network": "resnet8", "weights": tmp_path / "no.pt"},
            (1, 8, 8),
            "task.features.weights: .*No such file",
        ),
    ):
        experiment = load_experiment(
            "digits-diffusion", {f"task.features.{key}": str(value) for key, value in keys.items()}
        )
        with pytest.raises(UserError, match=said):
            experiment.task.build().example(shape, 2)
    gone = load_experiment(
        "digits-diffusion", {"task.features.network": "resnet8", "task.features.weights": "no.pt"}
    )
    with pytest.raises(UserError, match="^task.features.weights: cannot read no.pt"):
        run(gone, Diary(tmp_path), device=CPU)
    for key, value in (("network", "resnet8"), ("weights", "model.pt")):
        with pytest.raises(UserError, match="task.features.*expected"):
            load_experiment("digits-diffusion", {f"task.features.{key}": value})


def test_inceptions_are_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed; with weights that were drawn, for FID's own have to be fetched."""
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(library, "load_state_dict_from_url", lambda *_, **__: None)
    with monkeypatch.context() as fresh:
        fresh.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        drawn = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path / "inception.pth"
    torch.save(drawn.state_dict(), path)
    images = torch.randint(256, (4, 1, 16, 16), dtype=torch.uint8)
    features = build_features(FeatureSettings(network="inception", weights=path), (1, 16, 16))
    found = features(images / 127.5 - 1)
    assert found.shape == (4, 2048)
    torch.testing.assert_close(found, drawn(images.repeat(1, 3, 1, 1))[0])
    _, other = classifier(tmp_path)
    with pytest.raises(UserError, match="task.features.weights: .*Inception"):
        build_features(FeatureSettings(network="inception", weights=other), (1, 16, 16))
