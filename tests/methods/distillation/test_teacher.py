"""The teacher is only ever asked; what can't teach is refused before the first step."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation_nets import Segmenter, build, classifier
from torch import nn

from raytrain_speedup.methods.distillation.teacher import borrowed, load_teacher_weights, logits_of
from raytrain_speedup.settings import UserError


def test_weights_are_loaded(tmp_path: Path) -> None:
    source = classifier(seed=3)
    torch.save(source.state_dict(), tmp_path / "teacher.pt")
    loaded = load_teacher_weights(tmp_path / "teacher.pt", classifier())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.zeros(3), "holds a Tensor; expected a state dict"),
        ({"epoch": 3, "state_dict": {}}, "holds a dict with epoch, state_dict; expected a state dict"),
        ({}, "holds an empty dict"),
        ({"0.weight": torch.zeros(1)}, "lacks 0.bias, .* and .* more"),
        (classifier(classes=5).state_dict(), r"has shape \(5, 8\); the teacher needs \(3, 8\)"),
        (classifier().state_dict() | {"extra": torch.zeros(1)}, "also has extra"),
    ],
)
def test_another_files_content_is_named(tmp_path: Path, content: object, found: str) -> None:
    path = tmp_path / "teacher.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=found) as error:
        load_teacher_weights(path, classifier())
    assert str(path) in str(error.value)


def test_a_file_that_is_none_and_one_that_would_run_code_are_refused(tmp_path: Path) -> None:
    text, pickled = tmp_path / "notes.txt", tmp_path / "trap.pt"
    text.write_text("not a checkpoint")
    pickled.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    for path in (text, pickled, tmp_path / "missing.pt"):
        with pytest.raises(UserError, match="not a state-dict file"):
            load_teacher_weights(path, classifier())
    assert not (tmp_path / "sprung").exists()


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
    with pytest.raises(ZeroDivisionError), borrowed(student):
        assert not any(module.training for module in student.modules())
        assert not any(parameter.requires_grad for parameter in student.parameters())
        raise ZeroDivisionError
    assert modes == [module.training for module in student.modules()]
    assert trained == [parameter.requires_grad for parameter in student.parameters()]
