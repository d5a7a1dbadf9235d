"""What every synthesizer keeps to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from distillation_nets import SMALL_METHODS, Segmenter, build, classifier
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain_speedup.methods.distillation import SYNTHESIZERS

METHODS = list(SYNTHESIZERS)
STUDENT_COUNTS = ["fastdfkd", "zskt", "dfad", "dfq", "deepinversion", "cmi"]
every_method = pytest.mark.parametrize("method", METHODS)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@every_method
def test_a_call_gives_uint8_images_and_finite_metrics_on_the_device(method: str) -> None:
    synthesis = build(method).synthesize(0)
    settings = SYNTHESIZERS[method](**SMALL_METHODS[method])
    assert synthesis.images.dtype == torch.uint8
    assert synthesis.images.shape[1:] == (1, 8, 8)
    assert len(synthesis.images) % settings.batch_size == 0
    assert len(synthesis.images) <= settings.pool_capacity
    assert synthesis.images.float().std() > 1
    for value in synthesis.metrics.values():
        assert isinstance(value, Tensor) and value.dim() == 0 and value.isfinite() and not value.requires_grad


@every_method
def test_the_seed_and_the_call_decide_and_the_global_generator_is_left_alone(method: str) -> None:
    before = torch.get_rng_state()
    images = [
        build(method, seed=seed).synthesize(call).images for seed, call in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[3])


@every_method
def test_teacher_and_student_are_left_as_they_were(method: str) -> None:
    teacher, student = classifier(), classifier(2, seed=1)
    student.train()
    synthesizer = build(method, teacher, student)
    kept = snapshot(teacher), snapshot(student)
    synthesizer.synthesize(0)
    assert_equal(snapshot(teacher), kept[0])
    assert_equal(snapshot(student), kept[1])
    for network, trains in ((teacher, False), (student, True)):
        for parameter in network.parameters():
            assert parameter.grad is None and parameter.requires_grad is trains
        for module in network.modules():
            assert module.training is trains
            assert not module._forward_hooks and not module._forward_pre_hooks


@every_method
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(method: str) -> None:
    whole = build(method)
    images = [whole.synthesize(call).images for call in range(4)]
    first = build(method)
    for call in range(2):
        first.synthesize(call)
    state = copy.deepcopy(first.state_dict())
    second = build(method)
    second.load_state_dict(state)
    for call in (2, 3):
        assert torch.equal(second.synthesize(call).images, images[call])


@pytest.mark.parametrize("method", STUDENT_COUNTS)
def test_the_adversarial_loss_sees_the_student(method: str) -> None:
    norm = method not in ("zskt", "dfad")  # their students normalise by the batch, as no teacher does
    teacher = classifier(norm=norm)
    adversarial = {}
    another = classifier(2, norm=norm, seed=1)
    for name, student in {"itself": copy.deepcopy(teacher), "another": another}.items():
        adversarial[name] = build(method, teacher, student).synthesize(0).metrics["adv"].item()
    nothing_to_gain = 1.0 if method == "deepinversion" else 0.0
    assert adversarial["itself"] == pytest.approx(nothing_to_gain, abs=1e-5)
    assert abs(adversarial["another"] - nothing_to_gain) > 1e-4


@pytest.mark.parametrize("method", ["fastdfkd", "deepinversion", "cmi"])
def test_the_student_has_no_say_during_the_warm_up(method: str) -> None:
    synthesizer = build(method, warmup=2)
    assert "adv" not in synthesizer.synthesize(1).metrics
    assert "adv" in synthesizer.synthesize(2).metrics


class NoSynchronisation(TorchDispatchMode):
    """Fails on what makes the host wait for the device: reading a value, or shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(
            name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")
        )
        return func(*args, **(kwargs or {}))


@every_method
def test_no_call_waits_for_the_device(method: str) -> None:
    synthesizer = build(method)
    with NoSynchronisation():
        synthesizer.synthesize(0)
        synthesizer.synthesize(1)


@every_method
def test_segmentation_teachers_and_students_will_do(method: str) -> None:
    student = Segmenter()
    with torch.no_grad():
        student.head.weight *= 0.5  # less sure than the teacher, mostly of the same mind
    synthesis = build(method, Segmenter(), student).synthesize(0)
    assert synthesis.images.shape[1:] == (1, 8, 8)
    if method in ("fastdfkd", "deepinversion", "cmi"):
        assert "oh" not in synthesis.metrics and synthesis.metrics["bn"] > 0
    if method in STUDENT_COUNTS:
        assert synthesis.metrics["adv"] != 0


@every_method
def test_it_runs_under_autocast(method: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        synthesis = build(method).synthesize(0)
    assert all(value.isfinite() for value in synthesis.metrics.values())
    assert synthesis.images.float().std() > 1


@every_method
def test_its_settings_teach(method: str) -> None:
    settings = SYNTHESIZERS[method]
    assert settings().method == method
    assert all(field.description for name, field in settings.model_fields.items() if name != "method")
    with pytest.raises(ValidationError):
        settings(batch_sise=3)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("noise", "real")])
def test_images_improve_by_the_methods_own_measure(method: str) -> None:
    steps = "steps" if "steps" in SMALL_METHODS[method] else "generator_steps"
    student = classifier(2, seed=1)
    short, long = (
        build(method, student=student, batch_size=32, **{steps: count}).synthesize(0) for count in (1, 30)
    )
    assert long.metrics["loss"] < short.metrics["loss"]
