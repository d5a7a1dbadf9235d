"""Whole calls of every baseline by hand in float64, from its paper: loss, gradient, update, images, bank.

Networks and generator are written out here with their weights, gradients are autograd's of these, and Adam is its
formula. Only the draws (weights, latent codes, labels, the second view's crop) are the package's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from distillation_nets import build, classifier
from torch import Tensor, nn

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.methods.distillation.generator import initialise
from raytrain_speedup.randomness import LATENT

PLAIN = {"crop": 0, "flip": False}
MEAN, STD = 0.5, 0.25


@dataclass
class Seen:
    """What a network makes of images in [0, 1]: logits, (layer, input) of its BN layers, last layer's input."""

    logits: Tensor
    norms: list[tuple[nn.BatchNorm2d, Tensor]]
    features: Tensor


def run(network: nn.Sequential, images: Tensor, *, by_batch: bool = False) -> Seen:
    x, norms, features = (images - MEAN) / STD, [], images
    for layer in copy.deepcopy(network).double().eval():
        features = x
        if isinstance(layer, nn.BatchNorm2d):
            norms.append((layer, x))
            mean, var = (
                (x.mean((0, 2, 3)), variance(x)) if by_batch else (layer.running_mean, layer.running_var)
            )
            x = (x - wide(mean)) / (wide(var) + 1e-5).sqrt() * wide(layer.weight) + wide(layer.bias)
        else:
            x = layer(x)
    return Seen(x, norms, features)


def wide(channels: Tensor) -> Tensor:
    return channels[None, :, None, None]


def variance(x: Tensor) -> Tensor:
    return (x - wide(x.mean((0, 2, 3)))).square().mean((0, 2, 3))


def generated(weights: Sequence[Tensor], z: Tensor, *, output_norm: bool) -> Tensor:
    """Linear to 8 channels of 2 x 2, norm; twice: doubled, convolved, norm, leaky; convolved, (norm,) sigmoid."""
    left = list(weights)

    def norm(x: Tensor) -> Tensor:
        gain, bias = left.pop(0), left.pop(0)
        return (x - wide(x.mean((0, 2, 3)))) / (wide(variance(x)) + 1e-5).sqrt() * wide(gain) + wide(bias)

    x = norm((z @ left.pop(0).T + left.pop(0)).view(len(z), 8, 2, 2))
    for _ in range(2):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = norm(F.conv2d(x, left.pop(0), padding=1))
        x = torch.where(x > 0, x, 0.2 * x)
    x = F.conv2d(x, left.pop(0), left.pop(0), padding=1)
    x = norm(x) if output_norm else x
    assert not left
    return 1 / (1 + (-x).exp())


class HandAdam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, weights: Sequence[Tensor], lr: Sequence[float], betas: tuple[float, float]) -> None:
        self.weights, self.lr, self.betas = list(weights), lr, betas
        self.first = [torch.zeros_like(w) for w in weights]
        self.second = [torch.zeros_like(w) for w in weights]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        b1, b2 = self.betas
        for i, gradient in enumerate(gradients):
            self.first[i] = b1 * self.first[i] + (1 - b1) * gradient
            self.second[i] = b2 * self.second[i] + (1 - b2) * gradient**2
            m, v = self.first[i] / (1 - b1**self.steps), self.second[i] / (1 - b2**self.steps)
            with torch.no_grad():
                self.weights[i] -= self.lr[i] * m / (v.sqrt() + 1e-8)


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().clone().requires_grad_() for tensor in tensors]


def log_p(logits: Tensor) -> Tensor:
    return logits - logits.exp().sum(1, keepdim=True).log()


def kl(one: Tensor, other: Tensor) -> Tensor:
    return (log_p(one).exp() * (log_p(one) - log_p(other))).sum(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -log_p(logits)[torch.arange(len(labels)), labels].mean()


def bn_distance(seen: Seen) -> Tensor:
    gaps = [
        ((x.mean((0, 2, 3)) - layer.running_mean) ** 2).sum().sqrt()
        + ((variance(x) - layer.running_var) ** 2).sum().sqrt()
        for layer, x in seen.norms
    ]
    return torch.stack(gaps).sum()


def negative_entropy(logits: Tensor) -> Tensor:
    fraction = log_p(logits).exp().mean(0)
    return (fraction * fraction.log()).sum()


def dafl(teacher: Seen, student: Callable[..., Seen]) -> Tensor:
    """Chen et al. 2019, eq. 7."""
    sure = cross_entropy(teacher.logits, teacher.logits.argmax(1))
    return sure - 0.1 * teacher.features.abs().mean() + 5 * negative_entropy(teacher.logits)


def zskt(teacher: Seen, student: Callable[..., Seen]) -> Tensor:
    """Micaelli and Storkey 2019, algorithm 1: the generator descends -KL(T || S), S in training mode."""
    return -kl(teacher.logits, student(by_batch=True).logits).mean()


def dfad(teacher: Seen, student: Callable[..., Seen]) -> Tensor:
    """Fang et al. 2019: -log(1 + mean |T - S|), S in training mode."""
    return -(1 + (teacher.logits - student(by_batch=True).logits).abs().mean()).log()


def dfq(teacher: Seen, student: Callable[..., Seen]) -> Tensor:
    """Choi et al. 2020: -KL + BN statistics + confidence + class balance."""
    return (
        -kl(teacher.logits, student().logits).mean()
        + bn_distance(teacher)
        + cross_entropy(teacher.logits, teacher.logits.argmax(1))
        + negative_entropy(teacher.logits)
    )


LOSSES = {"dafl": dafl, "zskt": zskt, "dfad": dfad, "dfq": dfq}


def assert_moved_alike(after: Sequence[Tensor], expected: Sequence[Tensor], lr: float) -> None:
    """Within a hundredth of a step, but for weights whose gradient is nothing but rounding."""
    gaps = torch.cat([(a.double() - b).abs().flatten() for a, b in zip(after, expected, strict=True)]) / lr
    assert gaps.quantile(0.98) < 0.01, gaps.sort().values[-20:]


@pytest.mark.parametrize("method", LOSSES)
def test_generative_methods(method: str) -> None:
    """Two calls of two generator steps: the optimizer lives on, and images come from the weights after them."""
    teacher, student = classifier(), classifier(2, seed=1)
    clip, output_norm = (0.05, True) if method == "zskt" else (None, False)
    synthesizer = build(
        method, teacher, student, augment=PLAIN, generator_steps=2, batches=2, lr_g=3e-3, clip_norm=clip
    )
    assert synthesizer.settings.output_norm is output_norm
    weights = doubled(list(synthesizer.generator.parameters()))
    adam = HandAdam(weights, [3e-3] * len(weights), (0.9, 0.999))
    for call in range(2):
        made = synthesizer.synthesize(call).images
        rng = synthesizer.problem.rng(LATENT, call, 0)
        for _ in range(2):
            images = generated(weights, torch.randn(8, 8, generator=rng).double(), output_norm=output_norm)
            seen = run(teacher, images)
            loss = LOSSES[method](seen, lambda images=images, **how: run(student, images, **how))
            gradients = torch.autograd.grad(loss, weights)
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            if clip is not None:
                assert norm > clip
                gradients = [gradient * clip / norm for gradient in gradients]
            adam.step(gradients)
        assert_moved_alike(list(synthesizer.generator.parameters()), weights, 3e-3)
        fresh = [torch.randn(8, 8, generator=rng).double() for _ in range(2)]
        expected = torch.cat([generated(weights, z, output_norm=output_norm) for z in fresh])
        assert (made.double() - 255 * expected.detach()).abs().quantile(0.98) < 1


def test_deepinversion() -> None:
    """Yin et al. 2020: pixels from noise by Adam(.5, .9) on CE + bn + 1 - JS + total variation + l2."""
    teacher, student = classifier(), classifier(2, seed=1)
    how = {"bn": 0.4, "oh": 0.5, "adv": 0.6, "tv": 0.2, "l2": 0.3, "lr": 0.1, "steps": 3, "keep": "last"}
    synthesizer = build("deepinversion", teacher, student, augment=PLAIN, **how)
    made = synthesizer.synthesize(0).images
    rng = synthesizer.problem.rng(LATENT, 0, 0)
    noise = doubled([torch.randn(8, 1, 8, 8, generator=rng)])
    labels = torch.randint(3, (8,), generator=rng)
    adam = HandAdam(noise, [0.1], (0.5, 0.9))
    for _ in range(3):
        images = (MEAN + STD * noise[0]).clamp(0, 1)
        seen, judge, pixels = run(teacher, images), run(student, images), (images - MEAN) / STD
        middle = (log_p(seen.logits).exp() + log_p(judge.logits).exp()).div(2).log()
        js = (kl(seen.logits, middle) + kl(judge.logits, middle)).mean() / 2 / math.log(2)
        down, right = pixels[:, :, 1:] - pixels[:, :, :-1], pixels[:, :, :, 1:] - pixels[:, :, :, :-1]
        loss = 0.4 * bn_distance(seen) + 0.5 * cross_entropy(seen.logits, labels) + 0.6 * (1 - js)
        loss = loss + 0.2 * ((down**2).mean() + (right**2).mean()) + 0.3 * (pixels**2).mean()
        adam.step(torch.autograd.grad(loss, noise))
    expected = 255 * (MEAN + STD * noise[0]).clamp(0, 1).detach()
    assert (made.double() - expected).abs().quantile(0.98) < 1


def test_cmi() -> None:
    """Fang et al. 2021, two calls: a fresh generator each, one head, and a bank that the second contrasts with."""
    teacher, student = classifier(), classifier(2, seed=1)
    how = {"bn": 0.4, "oh": 0.5, "adv": 0.6, "cr": 0.7, "cr_temperature": 0.3, "zoom": 0.5, "steps": 2}
    rates = {"lr_g": 3e-3, "lr_head": 2e-3}
    synthesizer = build("cmi", teacher, student, augment=PLAIN, keep="last", bank=12, **how, **rates)
    head = doubled(list(synthesizer._head.parameters()))
    bank = torch.zeros(0, 12).double()

    def described(images: Tensor) -> Tensor:
        parts = [
            (x.mean((2, 3)) - layer.running_mean) / (layer.running_var + 1e-5).sqrt()
            for layer, x in run(teacher, images).norms
        ]
        return torch.cat(parts, 1)

    def embedded(descriptions: Tensor) -> Tensor:
        x = (descriptions @ head[0].T + head[1]).clamp(min=0) @ head[2].T + head[3]
        return x / x.square().sum(1, keepdim=True).sqrt()

    for call in range(2):
        rng, twin = synthesizer.problem.rng(LATENT, call, 0), copy.deepcopy(synthesizer._generator)
        made = synthesizer.synthesize(call).images
        initialise(twin, rng)
        z = torch.randn(8, 8, generator=rng)
        labels = torch.randint(3, (8,), generator=rng)
        weights = [*doubled(list(twin.parameters())), *doubled([z])]
        count = len(weights)
        adam = HandAdam([*weights, *head], [3e-3] * count + [2e-3] * len(head), (0.5, 0.999))
        for _ in range(2):
            images = generated(weights[:-1], weights[-1], output_norm=False)
            seen, judge = run(teacher, images), run(student, images)
            second = augment(images, Augment(crop=0, flip=False, zoom=0.5), rng)
            likeness = (
                embedded(described(images)) @ torch.cat([embedded(described(second)), embedded(bank)]).T
            )
            alike = seen.logits.argmax(1) == judge.logits.argmax(1)
            loss = (
                0.4 * bn_distance(seen)
                + 0.5 * cross_entropy(seen.logits, labels)
                - 0.6 * (kl(seen.logits, judge.logits) * alike).mean()
                + 0.7 * cross_entropy(likeness / 0.3, torch.arange(8))
            )
            adam.step(torch.autograd.grad(loss, [*weights, *head]))
        images = generated(weights[:-1], weights[-1], output_norm=False).detach()
        bank = torch.cat([bank, described(images).detach()])[-12:]
        assert (made.double() - 255 * images).abs().quantile(0.98) < 1
        assert_moved_alike(list(synthesizer._head.parameters()), head, 2e-3)
        torch.testing.assert_close(synthesizer.state_dict()["bank"].double(), bank, rtol=0, atol=1e-2)
