"""The images that every student is judged on: the teacher's alone, of its classes, several hundred."""

from __future__ import annotations

import pytest
import torch
from distillation_nets import Segmenter, build, classifier
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import evaluation_set
from raytrain_speedup.methods.distillation.evaluation_set import evaluation_images, natural_noise
from raytrain_speedup.randomness import torch_generator


def images_of(teacher: nn.Module, method: str = "noise", **settings: object) -> Tensor:
    return evaluation_images(build(method, teacher, **settings).problem)  # type: ignore[arg-type]


def test_the_teacher_decides_them_and_nothing_else_does() -> None:
    before = torch.get_rng_state()
    images = images_of(classifier())
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(
        images, images_of(classifier(), "dfq", student=classifier(3, seed=5), seed=7, batch_size=4)
    )
    assert not torch.equal(images, images_of(classifier(seed=2)))
    assert images.dtype == torch.uint8 and images.shape == (384, 1, 8, 8)
    assert len(images.unique(dim=0)) == 384


def test_every_image_begins_as_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_set, "STEPS", 0)
    assert len(images_of(classifier()).unique(dim=0)) == 384


def test_the_teacher_sees_its_classes_in_them_and_its_statistics() -> None:
    """Nearer on both counts than in the noise that they begin as. The teacher is sure of itself, by what its
    features vary in most, and has seen brighter images than the noise is."""
    teacher = classifier(8)
    bright = 1 + torch.randn(256, 1, 8, 8, generator=torch_generator("cpu", 0))
    for _ in range(20):
        teacher(bright)
    with torch.no_grad():
        features = teacher.eval()[:-1](bright)
        middle = features.mean(0)
        teacher[-1].weight.copy_(10 * torch.linalg.svd(features - middle, full_matrices=False)[2][:3])
        teacher[-1].bias.copy_(-teacher[-1].weight @ middle)
    problem = build("noise", teacher).problem
    made = problem.normalise(evaluation_images(problem).float() / 255)
    noise = natural_noise((384, 1, 8, 8), torch_generator("cpu", 0))
    asked = (torch.arange(128) % 3).repeat(3)
    found = []
    for inputs in (made, noise):
        seen = problem.probe.observe(inputs)
        right = (seen.logits.argmax(1) == asked).float().mean().item()
        gap = (seen.mean - problem.probe.running_mean).square() / problem.probe.running_var
        found.append((right, gap.mean().item()))
    (right, gap), (chance, before) = found
    assert right > chance + 0.1
    assert gap < 0.5 * before


@pytest.mark.parametrize(
    ("teacher", "count"),
    [(classifier(norm=False), 384), (Segmenter(), 48)],
    ids=["without norms", "per pixel"],
)
def test_teachers_without_batch_norm_and_of_pixels_have_theirs(teacher: nn.Module, count: int) -> None:
    images = images_of(teacher)
    assert images.shape == (count, 1, 8, 8)
    assert images.float().std() > 10


def test_the_noise_has_the_spectrum_of_photographs() -> None:
    """Amplitude over frequency falls as 1 / f; the std is 1."""
    noise = natural_noise((64, 2, 32, 32), torch_generator("cpu", 0))
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(64))
    amplitude = torch.fft.rfft2(noise).abs().mean((0, 1))[0]
    ratio = (amplitude[2] / amplitude[8]).item()
    assert 3.2 < ratio < 4.8
