"""The losses of distillation against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raytrain_speedup.methods.distillation import losses

quick = settings(max_examples=25, deadline=None)  # a busy machine is no failure


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


seeds = st.integers(0, 2**31)


@quick
@given(seeds, seeds)
def test_divergence_is_kl_and_vanishes_only_between_equals(one: int, other: int) -> None:
    teacher, student = logits(6, 5, seed=one), logits(6, 5, seed=other)
    p, q = teacher.softmax(1), student.softmax(1)
    torch.testing.assert_close(losses.divergence(teacher, student), (p * (p / q).log()).sum(1))
    assert (losses.divergence(teacher, student) >= -1e-12).all()
    torch.testing.assert_close(losses.divergence(teacher, teacher + 4), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize(
    "loss", [losses.adversarial_loss, losses.decision_adversarial_loss, losses.discrepancy_loss]
)
def test_a_pixel_counts_as_a_sample_does(loss: object) -> None:
    assert callable(loss)
    teacher, student = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    rows = [maps.permute(0, 2, 3, 1).reshape(-1, 5) for maps in (teacher, student)]
    torch.testing.assert_close(loss(teacher, student), loss(*rows))


def test_only_agreeing_samples_are_made_harder() -> None:
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = -losses.divergence(teacher[:1], student[:1]).sum() / 2
    torch.testing.assert_close(losses.decision_adversarial_loss(teacher, student), expected)


@quick
@given(seeds, st.integers(2, 8))
def test_balance_is_the_negative_entropy_of_the_mean_prediction(seed: int, classes: int) -> None:
    value = losses.balance_loss(logits(16, classes, seed=seed))
    assert -math.log(classes) - 1e-9 <= value <= 0
    even = 50 * torch.eye(classes, dtype=torch.float64)
    torch.testing.assert_close(losses.balance_loss(even).item(), -math.log(classes))


@quick
@given(seeds, seeds)
def test_the_competition_loss_lies_in_0_1_and_is_1_for_equals(one: int, other: int) -> None:
    teacher, student = logits(6, 5, seed=one), logits(6, 5, seed=other)
    assert -1e-9 <= losses.competition_loss(teacher, student) <= 1 + 1e-9
    torch.testing.assert_close(losses.competition_loss(teacher, teacher).item(), 1.0)
    opposed = 40 * torch.eye(2, dtype=torch.float64)
    assert losses.competition_loss(opposed, opposed.flip(0)) < 1e-6


def test_the_temperature_is_honoured_and_its_square_keeps_the_size_of_the_gradient() -> None:
    teacher = logits(4, 5)
    sizes = {}
    for temperature in (1.0, 20.0, 40.0):
        student = logits(4, 5, seed=1).requires_grad_()
        loss = losses.distillation_loss(teacher, student, temperature)
        p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
        torch.testing.assert_close(loss, temperature**2 * (p * (p / q).log()).sum(1))
        loss.sum().backward()
        assert student.grad is not None
        sizes[temperature] = student.grad.norm().item()
    assert sizes[40.0] == pytest.approx(sizes[20.0], rel=0.1)


def test_pixels_of_a_sample_are_averaged() -> None:
    teacher, student = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    loss = losses.distillation_loss(teacher, student, 2.0)
    assert loss.shape == (2,)
    torch.testing.assert_close(loss[0], 4 * losses.divergence(teacher[:1] / 2, student[:1] / 2).mean())


def test_the_contrast_is_lowest_where_views_match_and_others_differ() -> None:
    anchors = torch.eye(4)
    apart, crowded = torch.zeros(2, 4), torch.eye(4)[:2]
    low = losses.contrastive_loss(anchors, anchors, apart, 0.1)
    assert low < losses.contrastive_loss(anchors, anchors, crowded, 0.1)
    assert low < losses.contrastive_loss(anchors, anchors.roll(1, 0), apart, 0.1)


def test_the_remaining_terms_on_values_worked_out_by_hand() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert losses.total_variation(ramp) == 1.0
    assert losses.activation_loss(torch.tensor([[1.0, -3.0]])) == -2.0
    assert losses.discrepancy_loss(torch.ones(2, 2), -torch.ones(2, 2)) == pytest.approx(-math.log(3))
    assert losses.confidence_loss(torch.tensor([[0.0, 0.0]])) == pytest.approx(math.log(2))
