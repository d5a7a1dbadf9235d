"""The teacher is only ever asked; what can't teach is refused before the first step."""

from __future__ import annotations

import pytest
import torch
from distillation_nets import Segmenter, build, classifier
from torch import nn

from raytrain_speedup.methods.distillation.networks import borrowed, logits_of
from raytrain_speedup.settings import UserError


@pytest.mark.parametrize("method", ["fastdfkd", "dfq", "deepinversion", "cmi"])
def test_a_teacher_without_batch_norm_is_refused_where_it_is_needed(method: str) -> None:
    with pytest.raises(UserError, match=f"Sequential has no batch-norm layers.*{method} needs"):
        build(method, teacher=classifier(norm=False))


@pytest.mark.parametrize("method", ["dafl", "zskt", "dfad", "noise"])
def test_a_teacher_without_batch_norm_will_do_elsewhere(method: str) -> None:
    assert build(method, teacher=classifier(norm=False)).synthesize(0).images.shape[1:] == (1, 8, 8)


def test_other_classes_and_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="teacher: it knows 5 classes; the run has 3"):
        build("fastdfkd", teacher=classifier(classes=5))
    with pytest.raises(UserError, match="student: it knows 4 classes; the run has 3"):
        build("fastdfkd", student=classifier(classes=4))
    with pytest.raises(UserError, match="teacher: takes no images of 1 x 8 x 8"):
        build("fastdfkd", teacher=nn.Conv2d(3, 3, 1))


def test_logits_are_found_in_a_tensor_and_in_torchvisions_dict() -> None:
    x = torch.randn(2, 1, 8, 8)
    assert logits_of(Segmenter()(x)).shape == (2, 3, 8, 8)
    assert logits_of(x) is x
    with pytest.raises(UserError, match="tuple"):
        logits_of((x, x))


def test_a_borrowed_student_comes_back_as_it_was() -> None:
    student = classifier()
    student[1].eval()
    student[0].bias.requires_grad_(False)
    modes = [module.training for module in student.modules()]
    trained = [parameter.requires_grad for parameter in student.parameters()]
    learnt = {name: value.clone() for name, value in student.state_dict().items()}
    with borrowed(student, batch_statistics=True):
        student(torch.randn(4, 1, 8, 8))
    assert all(torch.equal(value, learnt[name]) for name, value in student.state_dict().items())
    with pytest.raises(ZeroDivisionError), borrowed(student):
        assert not any(module.training for module in student.modules())
        assert not any(parameter.requires_grad for parameter in student.parameters())
        raise ZeroDivisionError
    assert modes == [module.training for module in student.modules()]
    assert trained == [parameter.requires_grad for parameter in student.parameters()]
