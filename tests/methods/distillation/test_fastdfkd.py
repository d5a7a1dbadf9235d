"""FastDFKD: the meta-gradients by hand, and each fault of the public implementation as a test."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from distillation_nets import build, classifier
from pydantic import ValidationError
from torch import Tensor, nn

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.augment import Augment
from raytrain_speedup.methods.distillation.bn_statistics import BatchNormProbe
from raytrain_speedup.methods.distillation.fastdfkd import (
    FastDFKD,
    FastDFKDSettings,
    Meta,
    fomaml_gradient,
    reptile_gradient,
)
from raytrain_speedup.methods.distillation.generator import Generator
from raytrain_speedup.methods.distillation.networks import freeze
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.methods.distillation.synthesis import Score, descend
from raytrain_speedup.randomness import LATENT

PLAIN = {"crop": 0, "flip": False}


def fast(**settings: Any) -> FastDFKD:
    synthesizer = build("fastdfkd", **settings)
    assert isinstance(synthesizer, FastDFKD)
    return synthesizer


def weights(generator: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in generator.parameters()]


def test_meta_gradients_of_a_two_layer_net_equal_those_worked_out_by_hand() -> None:
    """x = W2 tanh(W1 z), loss = |x - a|^2 / 2, three steps of gradient descent at rate 0.1."""
    draw = np.random.default_rng(0)
    z, a = draw.normal(size=(4, 1)), draw.normal(size=(3, 1))
    first, second = draw.normal(size=(5, 4)), draw.normal(size=(3, 5))
    network = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    meta = [torch.tensor(first), torch.tensor(second)]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), meta, strict=True):
            parameter.copy_(value)

    by_hand = []
    for _ in range(3):
        hidden = np.tanh(first @ z)
        error = second @ hidden - a
        by_hand.append([(second.T @ error * (1 - hidden**2)) @ z.T, error @ hidden.T])
        first, second = first - 0.1 * by_hand[-1][0], second - 0.1 * by_hand[-1][1]
    sums = [sum(step[layer] for step in by_hand) for layer in range(2)]

    totals: dict[Meta, list[Tensor]] = {"fomaml": [], "fomaml-last": []}

    def note(gradients: Sequence[Tensor]) -> None:
        for kind, total in totals.items():
            fomaml_gradient(total, gradients, kind)

    descend(
        lambda: network(torch.tensor(z.T)),
        lambda x: Squared(x, torch.tensor(a.T)),
        torch.optim.SGD(network.parameters(), lr=0.1),
        steps=3,
        keep="last",
        on_gradient=note,
    )
    reptile = reptile_gradient(meta, list(network.parameters()))
    for layer in range(2):
        np.testing.assert_allclose(totals["fomaml"][layer], sums[layer], rtol=1e-12)
        np.testing.assert_allclose(totals["fomaml-last"][layer], by_hand[-1][layer], rtol=1e-12)
        np.testing.assert_allclose(reptile[layer], 0.1 * sums[layer], rtol=1e-10)


class Squared(Score):
    """|x - a|^2 / 2, without a teacher."""

    def __init__(self, x: Tensor, target: Tensor) -> None:
        object.__setattr__(self, "terms", {"squared": (x - target).square().sum() / 2})

    @property
    def loss(self) -> Tensor:
        return self.terms["squared"]


def test_a_batch_from_before_the_first_step_is_not_kept_even_if_it_was_better() -> None:
    """x^2 / 2 at rate 3: 1, -2, 4."""
    x = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=3.0)
    kept, _ = descend(lambda: 1.0 * x, lambda y: Squared(y, torch.zeros(1)), optimizer, steps=2, keep="best")
    assert (kept.item(), x.item()) == (-2.0, 4.0)


def naive_adaptation(
    synthesizer: FastDFKD, teacher: nn.Module, steps: int
) -> tuple[list[list[Tensor]], Generator, list[Tensor], list[float]]:
    """The k steps of call 0, plainly: gradients, adapted generator, images and losses after each step."""
    how, problem = synthesizer.settings, synthesizer.problem
    generator = copy.deepcopy(synthesizer.generator)
    rng = problem.rng(LATENT, 0, 0)
    z = torch.randn(how.batch_size, how.latent, generator=rng).requires_grad_()
    target = torch.randint(3, (how.batch_size,), generator=rng)
    optimizer = torch.optim.Adam(
        [{"params": generator.parameters(), "lr": how.lr_g}, {"params": [z], "lr": how.lr_z}],
        betas=(0.5, 0.999),
    )
    probe = BatchNormProbe(teacher, torch.zeros(2, 1, 8, 8))
    gradients, images, values = [], [], []
    for step in range(steps + 1):
        x = generator(z)
        seen = probe.observe((x - 0.5) / 0.25)
        loss = how.bn * losses.bn_loss(
            seen.mean, seen.var, probe.running_mean, probe.running_var, probe.sizes
        )
        loss = loss + how.oh * nn.functional.cross_entropy(seen.logits, target)
        if step > 0:
            images.append(x.detach())
            values.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gradients.append([p.grad.clone() for p in generator.parameters() if p.grad is not None])
    return gradients, generator, images, values


@pytest.mark.parametrize("meta", get_args(Meta))
def test_a_calls_meta_gradient_is_that_of_a_plain_loop(meta: Meta) -> None:
    teacher = freeze(classifier())
    synthesizer = fast(teacher=teacher, steps=3, adv=0, augment=PLAIN, meta=meta)
    before = weights(synthesizer.generator)
    gradients, adapted, _, _ = naive_adaptation(synthesizer, teacher, 3)
    synthesizer.synthesize(0)
    for index, parameter in enumerate(synthesizer.generator.parameters()):
        expected = {
            "reptile": before[index] - list(adapted.parameters())[index].detach(),
            "fomaml": sum((step[index] for step in gradients), torch.zeros(())),
            "fomaml-last": gradients[-1][index],
        }[meta]
        assert parameter.grad is not None
        scale = expected.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4 * scale + 1e-7)
        assert not torch.equal(parameter.detach(), before[index])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_stored_batch_was_rendered_after_a_step_and_is_the_best_or_the_last(steps: int) -> None:
    """With k = 1 the public code stores images that no step has touched."""
    for keep in ("best", "last"):
        teacher = freeze(classifier())
        synthesizer = fast(teacher=teacher, steps=steps, adv=0, augment=PLAIN, keep=keep, lr_g=0.05, lr_z=0.5)
        _, _, images, values = naive_adaptation(synthesizer, teacher, steps)
        chosen = int(np.argmin(values)) if keep == "best" else steps - 1
        stored = synthesizer.synthesize(0).images.int()
        assert (stored - to_uint8(images[chosen]).int()).abs().max() <= 1


def test_the_meta_generator_learns_to_adapt_faster_than_a_fresh_one() -> None:
    after = {}
    for reuse in ("none", "common"):
        synthesizer = fast(batch_size=32, adv=0, bn_momentum=0.0, reuse=reuse, width=16, latent=32)
        after[reuse] = [synthesizer.synthesize(call).metrics["loss"].item() for call in range(20)][-5:]
    assert max(after["common"]) < 0.9 * min(after["none"])


def test_reuse_decides_what_a_batch_starts_from() -> None:
    generators = {}
    for reuse in ("none", "sequential", "common"):
        synthesizer = fast(reuse=reuse, reset_first_layer=None)
        start = weights(synthesizer.generator)
        synthesizer.synthesize(0)
        moved = [
            not torch.equal(p, q) for p, q in zip(start, synthesizer.generator.parameters(), strict=True)
        ]
        assert all(moved) if reuse != "none" else not any(moved)
        generators[reuse] = weights(synthesizer.generator), weights(synthesizer._adapted)
    for after, adapted in zip(*generators["sequential"], strict=True):
        torch.testing.assert_close(after, adapted)
    assert not torch.equal(generators["common"][0][0], generators["common"][1][0])


def test_the_statistics_are_smoothed_over_calls() -> None:
    synthesizer = fast(bn_momentum=0.75, bn_bias_correction=False)
    batches = []
    for call in range(3):
        before = synthesizer._memory
        synthesizer.synthesize(call)
        assert synthesizer._memory is not None
        now = synthesizer._memory[0]
        batches.append(now if before is None else (now - 0.75 * before[0]) / 0.25)
    other = fast(bn_momentum=0.0)
    other.synthesize(0)
    assert other._memory is not None
    torch.testing.assert_close(batches[0], other._memory[0])
    expected = 0.75 * (0.75 * batches[0] + 0.25 * batches[1]) + 0.25 * batches[2]
    torch.testing.assert_close(synthesizer._memory[0], expected)


def test_the_smoothed_statistics_have_no_bias_towards_the_first_call() -> None:
    """m = .75: of three calls they are weighed 9 : 12 : 16. Nothing is learnt, so calls give the same."""
    still = {"reuse": "none", "bn_momentum": 0.75, "steps": 1}
    batches = []
    for call in range(3):
        alone = fast(**still)
        alone.synthesize(call)
        assert alone._memory is not None
        batches.append(alone._memory)
    synthesizer = fast(**still)
    for call in range(3):
        if call == 2:  # what is known survives a checkpoint
            state, synthesizer = copy.deepcopy(synthesizer.state_dict()), fast(**still)
            synthesizer.load_state_dict(state)
        synthesizer.synthesize(call)
    assert synthesizer._memory is not None
    for i, smoothed in enumerate(synthesizer._memory):
        expected = (9 * batches[0][i] + 12 * batches[1][i] + 16 * batches[2][i]) / 37
        torch.testing.assert_close(smoothed, expected)


def test_the_first_layer_is_drawn_anew_at_its_call_and_the_generator_every_so_often() -> None:
    synthesizer = fast(reset_first_layer=2, reset_every=3)
    before = weights(synthesizer.generator)
    synthesizer._reset(0)
    synthesizer._reset(1)
    assert all(torch.equal(p, q) for p, q in zip(before, synthesizer.generator.parameters(), strict=True))
    synthesizer._reset(2)
    changed = [not torch.equal(p, q) for p, q in zip(before, synthesizer.generator.parameters(), strict=True)]
    assert changed == [True, True] + [False] * (len(before) - 2)
    synthesizer.synthesize(2)
    synthesizer._reset(3)
    assert len(synthesizer.optimizer.state) == 0
    fresh = weights(synthesizer.generator)
    assert not torch.equal(fresh[-2], before[-2])


def test_the_meta_rate_is_k_times_the_inner_one() -> None:
    assert fast(steps=5, lr_g=3e-3).optimizer.param_groups[0]["lr"] == pytest.approx(0.015)


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_task_adds_its_own_batch(tasks: int) -> None:
    images = fast(tasks=tasks).synthesize(0).images
    assert len(images) == 8 * tasks
    assert len(images.unique(dim=0)) == 8 * tasks


def test_settings_without_any_loss_are_refused() -> None:
    with pytest.raises(ValidationError, match="bn or oh"):
        FastDFKDSettings(bn=0, oh=0)


def test_the_papers_schedule_is_the_default() -> None:
    how = FastDFKDSettings()
    assert (how.steps, how.lr_g, how.lr_z, how.bn, how.temperature) == (10, 2e-3, 0.01, 10.0, 20.0)
    assert (how.batch_size, how.student_steps, how.warmup, how.bn_momentum) == (256, 400, 20, 0.9)
    assert how.augment == Augment(crop=4, flip=True)
    assert how.pool_capacity >= 220 * 256


LEARNT = {"lr_z_meta": 0.05, "lr_meta": 0.01, "meta": "reptile", "adv": 0, "augment": PLAIN, "steps": 3}


def test_start_latents_are_learnt_as_the_generator_is() -> None:
    """Reptile's gradient is start - end, and Adam's first step goes by the rate against its sign."""
    synthesizer, twin = fast(**LEARNT), fast(**LEARNT)
    start, before = synthesizer.latents[0].clone(), weights(synthesizer.generator)
    synthesizer.synthesize(0)
    rng = twin.problem.rng(LATENT, 0, 0)
    twin.generator.sample_latent(8, rng)
    target = torch.randint(3, (8,), generator=rng)
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": list(twin.generator.parameters()), "lr": 2e-3}, {"params": [z], "lr": 0.01}],
        betas=(0.5, 0.999),
    )
    for _ in range(3):
        optimizer.zero_grad()
        twin.score(twin.generator(z), target, rng, 0).loss.backward()
        optimizer.step()
    moved = z.detach() - start
    sure = moved.abs() > 1e-4
    torch.testing.assert_close(
        (synthesizer.latents[0] - start)[sure], 0.05 * moved.sign()[sure], atol=1e-3, rtol=0
    )
    first = (synthesizer.generator.first.weight.detach() - before[0]).abs()
    assert first.max().item() == pytest.approx(0.01, rel=0.01)


def test_learnt_latents_are_what_calls_start_from_and_are_drawn_anew_with_adam_alone() -> None:
    synthesizer = fast(**LEARNT, reset_latents=2)
    calls = []
    for call in range(3):
        synthesizer._reset(call)
        calls.append((synthesizer.latents[0].clone(), weights(synthesizer.generator)))
        if call < 2:
            assert len(synthesizer.optimizer.state) == (len(calls[0][1]) + 1) * call
            synthesizer.synthesize(call)
            assert not torch.equal(synthesizer.latents[0], calls[call][0])
    assert len(synthesizer.optimizer.state) == 0
    torch.testing.assert_close(calls[0][0], calls[1][0], atol=0.06, rtol=0)  # one step of .05 away
    assert (calls[2][0] - calls[1][0]).abs().max() > 0.5
    after = weights(synthesizer.generator)
    assert all(torch.equal(a, b) for a, b in zip(after, calls[2][1], strict=True))


def test_learnt_latents_survive_a_checkpoint() -> None:
    whole = fast(**LEARNT, reset_latents=3)
    images = [whole.synthesize(call).images for call in range(4)]
    first = fast(**LEARNT, reset_latents=3)
    for call in range(2):
        first.synthesize(call)
    second = fast(**LEARNT, reset_latents=3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(second.synthesize(call).images, images[call]) for call in (2, 3))


@pytest.mark.parametrize("wrong", [{"lr_z_meta": 0.1, "reuse": "none"}, {"reset_latents": 3}])
def test_latents_that_nothing_learns_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"expected (reuse: common|lr_z_meta)"):
        FastDFKDSettings(**wrong)


def test_the_student_may_see_other_crops_than_the_synthesis() -> None:
    assert FastDFKDSettings().augment_for_student == Augment()
    other = Augment(crop=0, zoom=0.08)
    assert FastDFKDSettings(student_augment=other).augment_for_student == other
