"""Segmentation's loss and mean IoU against plain loops in float64."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies

from raytrain_speedup.data import IGNORE_INDEX
from raytrain_speedup.tasks.distillation import Distillation
from raytrain_speedup.tasks.segmentation import Segmentation, SegmentationSettings, confusion, mean_iou

K = 3


def batch(seed: int, count: int = 4, side: int = 5, void: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randint(K, (count, side, side), generator=rng)
    target[torch.rand(target.shape, generator=rng) < void] = IGNORE_INDEX
    return torch.randn(count, K, side, side, generator=rng), target


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_samples_loss_is_the_mean_over_its_labelled_pixels(smoothing: float):
    output, target = batch(0)
    losses = SegmentationSettings(label_smoothing=smoothing).build().per_sample(output, target)
    for image, mask, loss in zip(output.double(), target, losses, strict=True):
        expected = []
        for logits, label in zip(image.flatten(1).T, mask.flatten().tolist(), strict=True):
            if label != IGNORE_INDEX:
                logs = logits.log_softmax(0)
                expected.append(-(1 - smoothing) * logs[label] - smoothing * logs.mean())
        torch.testing.assert_close(loss.double(), torch.stack(expected).mean())


def test_an_image_without_labels_weighs_nothing():
    output, target = batch(1)
    target[2] = IGNORE_INDEX
    output.requires_grad_()
    losses = Segmentation().per_sample(output, target)
    assert losses[2] == 0
    losses.sum().backward()
    assert torch.isfinite(output.grad).all() and not output.grad[2].any()
    assert not output.grad.transpose(0, 1)[:, target == IGNORE_INDEX].any()


def test_logits_at_low_bandwidth_are_enlarged():
    output, target = batch(2, side=8)
    losses = Segmentation().per_sample(output[..., ::2, ::2], target)
    assert losses.shape == (4,) and torch.isfinite(losses).all()


@hypothesis.given(strategies.integers(0, 10_000), strategies.sampled_from([0.0, 0.5, 0.97, 1.0]))
def test_mean_iou_of_sets_of_pixels(seed: int, void: float):
    output, target = batch(seed, count=2, side=3, void=void)
    prediction = output.argmax(1)
    ratios = []
    for k in range(K):
        labelled = target != IGNORE_INDEX
        both = ((prediction == k) & (target == k)).sum().item()
        either = (((prediction == k) | (target == k)) & labelled).sum().item()
        if either:
            ratios.append(both / either)
    matrix = confusion(prediction, target, K)
    assert matrix.sum() == (target != IGNORE_INDEX).sum()
    assert mean_iou(matrix) == pytest.approx(sum(ratios) / len(ratios) if ratios else 0.0)


def test_totals_add_up_over_batches():
    task = Segmentation()
    output, target = batch(3, count=6)
    whole = task.judge(output, target)
    parts = sum(task.judge(output[i : i + 2], target[i : i + 2]) for i in (0, 2, 4))
    torch.testing.assert_close(whole, parts)
    metrics = task.metrics(whole, "test")
    assert metrics["loss"] == pytest.approx(task.per_sample(output, target).double().mean().item())
    labelled = target != IGNORE_INDEX
    right = (output.argmax(1) == target)[labelled].float().mean().item()
    assert metrics["pixel_accuracy"] == pytest.approx(100 * right)
    assert metrics["miou"] == pytest.approx(100 * mean_iou(confusion(output.argmax(1), target, K)))


def test_a_perfect_prediction_and_the_worst():
    target = torch.tensor([[[0, 1], [2, IGNORE_INDEX]]])
    right = torch.nn.functional.one_hot(target.clamp(max=K - 1), K).permute(0, 3, 1, 2).float()
    task = Segmentation()
    assert task.metrics(task.judge(right, target), "val")["miou"] == 100
    assert task.metrics(task.judge(right.roll(1, 1), target), "val")["miou"] == 0


def test_a_student_is_validated_by_the_pixels_it_decides_as_its_teacher_does():
    task = Distillation(Segmentation(), temperature=2.0, num_classes=K)
    teacher, _ = batch(4)
    student = teacher.clone()
    student[0] = student[0].roll(1, 0)
    alike = (student.argmax(1) == teacher.argmax(1)).float().mean().item()
    metrics = task.metrics(task.judge(student, teacher), "val")
    assert metrics.keys() == {"loss", "agreement"} and metrics["agreement"] == pytest.approx(100 * alike)
    assert task.per_sample(student, teacher).shape == (4,)
    _, target = batch(5)
    assert task.metrics(task.judge(student, target), "test").keys() == {"loss", "miou", "pixel_accuracy"}
