"""The whole loss of every method with several terms, worked out by hand in float64 from its paper.

The networks are run layer by layer in numpy's place (double precision, no hooks of the package), the formulas are
written out with the settings' weights, and only the draw of the augmentation is the package's own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from distillation_nets import build, classifier
from torch import Tensor, nn

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.methods.distillation.cmi import CMI
from raytrain_speedup.methods.distillation.deepinversion import DeepInversion
from raytrain_speedup.methods.distillation.evaluation_set import inversion_loss
from raytrain_speedup.methods.distillation.fastdfkd import FastDFKD
from raytrain_speedup.methods.distillation.generative import GenerativeSynthesizer
from raytrain_speedup.methods.distillation.synthesis import Score
from raytrain_speedup.randomness import torch_generator

AUGMENT = Augment(crop=2, flip=True)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])


@dataclass
class Seen:
    """What a network makes of a batch: (B, K) logits, its BN layers' inputs, the last layer's input (B, F)."""

    logits: np.ndarray
    norms: list[tuple[nn.BatchNorm2d, np.ndarray]]
    features: np.ndarray


def run(network: nn.Sequential, inputs: Tensor, *, batch_statistics: bool = False) -> Seen:
    """Layer by layer in double precision, in evaluation mode or normalised by the batch."""
    x, norms, features = inputs.double(), [], inputs
    for layer in copy.deepcopy(network).double().train(batch_statistics):
        if isinstance(layer, nn.BatchNorm2d):
            norms.append((layer, x.numpy()))
        features, x = x, layer(x).detach()
    return Seen(x.numpy(), norms, features.numpy())


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


def bn_distance(seen: Seen) -> float:
    """DeepInversion eq. 4: the sum over layers of ||mean - running|| and ||var - running||."""
    total = 0.0
    for layer, x in seen.norms:
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        total += np.sqrt(((layer.running_mean.numpy() - mean) ** 2).sum())
        total += np.sqrt(((layer.running_var.numpy() - var) ** 2).sum())
    return total


def entropy_of_the_mean(logits: np.ndarray) -> float:
    fraction = softmax(logits).mean(0)
    return float(-(fraction * np.log(fraction)).sum())


def variation(pixels: np.ndarray) -> float:
    """The mean squared step down plus the mean squared step right."""
    down, right = pixels[:, :, 1:] - pixels[:, :, :-1], pixels[:, :, :, 1:] - pixels[:, :, :, :-1]
    return float((down**2).mean() + (right**2).mean())


@pytest.fixture(scope="module")
def teacher() -> nn.Sequential:
    return classifier()


@pytest.fixture(scope="module")
def student(teacher: nn.Sequential) -> nn.Sequential:
    """Of the teacher's mind on some images, and of another on others."""
    network = copy.deepcopy(teacher)
    with torch.no_grad():
        network[-1].weight += 0.4 * torch.randn(network[-1].weight.shape, generator=torch_generator("cpu", 1))
    return network


IMAGES = torch.rand(8, 1, 8, 8, generator=torch_generator("cpu", 2))


def shown(how: Augment = AUGMENT, *, after: torch.Generator | None = None) -> Tensor:
    """The images as a network sees them, by the first draw of a generator, or by its next."""
    return (augment(IMAGES, how, draws() if after is None else after) - 0.5) / 0.25


def draws() -> torch.Generator:
    return torch_generator("cpu", 3)


def judged(teacher: nn.Sequential, student: nn.Sequential) -> tuple[Seen, np.ndarray, np.ndarray]:
    """What the teacher sees, and how both decide."""
    seen = run(teacher, shown())
    return seen, softmax(seen.logits), softmax(run(student, shown()).logits)


def assert_terms(score: Score, expected: dict[str, float]) -> None:
    assert {name: term.item() for name, term in score.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert score.loss.item() == pytest.approx(sum(expected.values()), rel=1e-4)


def generative(method: str, teacher: nn.Module, student: nn.Module, **settings: Any) -> Score:
    synthesizer = build(method, teacher, student, augment=AUGMENT, **settings)
    assert isinstance(synthesizer, GenerativeSynthesizer)
    return synthesizer.score(IMAGES, draws())


def test_student_and_teacher_agree_on_some_images_only(
    teacher: nn.Sequential, student: nn.Sequential
) -> None:
    """So that the masks below show."""
    _, p, q = judged(teacher, student)
    assert 0 < (p.argmax(1) == q.argmax(1)).sum() < len(p)


def test_dafl(teacher: nn.Sequential, student: nn.Sequential) -> None:
    """Chen et al. 2019, eq. 7: L_oh + alpha L_a + beta L_ie, alpha = .1 and beta = 5 by default; the L1 norm of the
    features is a mean, as in the authors' code."""
    seen, _, _ = judged(teacher, student)
    oh = cross_entropy(seen.logits, seen.logits.argmax(1))
    active, even = np.abs(seen.features).mean(), entropy_of_the_mean(seen.logits)
    assert_terms(generative("dafl", teacher, student), {"oh": oh, "act": -0.1 * active, "balance": -5 * even})
    assert_terms(
        generative("dafl", teacher, student, oh=0.5, act=0.7, balance=2.0),
        {"oh": 0.5 * oh, "act": -0.7 * active, "balance": -2 * even},
    )


def test_dfq(teacher: nn.Sequential, student: nn.Sequential) -> None:
    """Choi et al. 2020: the divergence is to grow; statistics, confidence and balance keep the images plausible."""
    seen, p, q = judged(teacher, student)
    expected = {
        "adv": -0.3 * kl(p, q).mean(),
        "oh": 0.5 * cross_entropy(seen.logits, seen.logits.argmax(1)),
        "balance": -0.7 * entropy_of_the_mean(seen.logits),
        "bn": 0.9 * bn_distance(seen),
    }
    assert_terms(generative("dfq", teacher, student, adv=0.3, oh=0.5, balance=0.7, bn=0.9), expected)


def test_zskt_and_dfad(teacher: nn.Sequential, student: nn.Sequential) -> None:
    """Micaelli and Storkey 2019: -KL(T || S). Fang et al. 2019: -log(1 + |T - S|). The student is in
    training mode in both."""
    right = run(teacher, shown()).logits
    training = run(student, shown(), batch_statistics=True).logits
    divergence = kl(softmax(right), softmax(training)).mean()
    assert_terms(generative("zskt", teacher, student, adv=0.6), {"adv": -0.6 * divergence})
    gap = np.abs(right - training).mean()
    assert_terms(generative("dfad", teacher, student, adv=0.6), {"adv": -0.6 * np.log(1 + gap)})


def test_deepinversion(teacher: nn.Sequential, student: nn.Sequential) -> None:
    """Yin et al. 2020, eq. 2 to 8: class, statistics, total variation, l2 and competition. The priors are on the
    normalised pixels before they are augmented."""
    seen, p, q = judged(teacher, student)
    pixels = (IMAGES.double().numpy() - 0.5) / 0.25
    middle = (p + q) / 2
    js = (kl(p, middle).mean() + kl(q, middle).mean()) / 2 / np.log(2)
    expected = {
        "tv": 0.2 * variation(pixels),
        "l2": 0.3 * (pixels**2).mean(),
        "bn": 0.4 * bn_distance(seen),
        "oh": 0.5 * cross_entropy(seen.logits, LABELS.numpy()),
        "adv": 0.6 * (1 - js),
    }
    settings = {"tv": 0.2, "l2": 0.3, "bn": 0.4, "oh": 0.5, "adv": 0.6, "augment": AUGMENT}
    synthesizer = build("deepinversion", teacher, student, **settings)
    assert isinstance(synthesizer, DeepInversion)
    assert_terms(synthesizer.score(IMAGES, LABELS, draws(), 0), expected)


def test_fastdfkd(teacher: nn.Sequential, student: nn.Sequential) -> None:
    """Fang et al. 2022: the adversary counts where student and teacher decide alike, over the whole batch."""
    seen, p, q = judged(teacher, student)
    alike = p.argmax(1) == q.argmax(1)
    expected = {
        "bn": 0.4 * bn_distance(seen),
        "oh": 0.5 * cross_entropy(seen.logits, LABELS.numpy()),
        "adv": -0.6 * (kl(p, q) * alike).sum() / len(p),
    }
    synthesizer = build("fastdfkd", teacher, student, bn=0.4, oh=0.5, adv=0.6, augment=AUGMENT)
    assert isinstance(synthesizer, FastDFKD)
    assert_terms(synthesizer.score(IMAGES, LABELS, draws(), 0), expected)


def test_fastdfkd_smooths_the_statistics_in_its_loss_over_calls(teacher: nn.Sequential) -> None:
    """Three quarters of what was remembered and a quarter of the batch's, mean and variance; of one call that was
    remembered, 3/7 without its bias."""
    for correction, calls, share in ((False, 1, 0.75), (True, 1, 3 / 7), (True, 1000, 0.75)):
        check_smoothing(teacher, correction, calls, share)


def check_smoothing(teacher: nn.Sequential, correction: bool, calls: int, share: float) -> None:
    own = {"bn_momentum": 0.75, "bn_bias_correction": correction}
    synthesizer = build("fastdfkd", teacher, bn=0.4, oh=0.0, adv=0.0, augment=AUGMENT, **own)
    assert isinstance(synthesizer, FastDFKD)
    memory = [torch.linspace(-1, 1, 12), torch.linspace(0.5, 2, 12)]
    known = {"memory": tuple(memory), "remembered": calls}
    synthesizer.load_state_dict(synthesizer.state_dict() | known)
    total, start = 0.0, 0
    for layer, x in run(teacher, shown()).norms:
        part = slice(start, start := start + x.shape[1])
        for old, new, learnt in (
            (memory[0], x.mean((0, 2, 3)), layer.running_mean),
            (memory[1], x.var((0, 2, 3)), layer.running_var),
        ):
            smoothed = share * old[part].double().numpy() + (1 - share) * new
            total += np.sqrt(((learnt.numpy() - smoothed) ** 2).sum())
    assert_terms(synthesizer.score(IMAGES, LABELS, draws(), 0), {"bn": 0.4 * total})


def test_cmi(teacher: nn.Sequential, student: nn.Sequential) -> None:
    """Fang et al. 2021, eq. 5 and 6: -log of what an image's other view has of all similarities, those of
    the batch's other images and of the bank among them, cosines over the temperature."""
    settings = {"bn": 0.4, "oh": 0.5, "adv": 0.6, "cr": 0.7, "cr_temperature": 0.3, "zoom": 0.5}
    synthesizer = build("cmi", teacher, student, augment=AUGMENT, **settings)
    assert isinstance(synthesizer, CMI)
    rng = draws()
    views = [shown(after=rng), shown(Augment(crop=0, flip=True, zoom=0.5), after=rng)]
    bank = np.random.default_rng(0).normal(size=(5, 12))
    head = synthesizer.state_dict()["head"]
    synthesizer.load_state_dict({"head": head, "bank": torch.tensor(bank).float()})

    def embedded(descriptions: np.ndarray) -> np.ndarray:
        weight = [head[name].double().numpy() for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
        hidden = np.maximum(descriptions @ weight[0].T + weight[1], 0)
        out = hidden @ weight[2].T + weight[3]
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def described(view: Tensor) -> np.ndarray:
        parts = [
            (x.mean((2, 3)) - layer.running_mean.numpy()) / np.sqrt(layer.running_var.numpy() + 1e-5)
            for layer, x in run(teacher, view).norms
        ]
        return np.concatenate(parts, 1)

    anchors, positives = (embedded(described(view)) for view in views)
    likeness = np.exp(anchors @ np.concatenate([positives, embedded(bank)]).T / 0.3)
    contrast = -np.log(np.diag(likeness[:, :8]) / likeness.sum(1)).mean()
    seen, p, q = judged(teacher, student)
    alike = p.argmax(1) == q.argmax(1)
    expected = {
        "bn": 0.4 * bn_distance(seen),
        "cr": 0.7 * contrast,
        "oh": 0.5 * cross_entropy(seen.logits, LABELS.numpy()),
        "adv": -0.6 * (kl(p, q) * alike).mean(),
    }
    assert_terms(synthesizer.score(IMAGES, LABELS, draws(), 0), expected)


def test_cmi_learns_its_head_and_remembers_what_it_made(
    teacher: nn.Sequential, student: nn.Sequential
) -> None:
    """The bank holds the plain descriptions of the newest images, oldest first; the head moves with the images."""
    synthesizer = build("cmi", teacher, student, steps=2, bank=12)
    assert isinstance(synthesizer, CMI)
    head = copy.deepcopy(synthesizer.state_dict()["head"])
    made = [synthesizer.synthesize(call).images for call in range(2)]
    state = synthesizer.state_dict()
    assert not any(torch.equal(head[name], state["head"][name]) for name in head)
    kept = torch.cat(made)[-12:].float() / 255
    described = [
        (torch.tensor(x.mean((2, 3))) - layer.running_mean) / (layer.running_var + 1e-5).sqrt()
        for layer, x in run(teacher, (kept - 0.5) / 0.25).norms
    ]
    # The stored pixels are rounded to 8 bits, the described ones are not yet.
    torch.testing.assert_close(state["bank"].double(), torch.cat(described, 1), rtol=0, atol=0.05)


def test_the_loss_behind_the_evaluation_set(teacher: nn.Sequential) -> None:
    """Cross-entropy, the KL divergence of Gaussians per channel (mean over all channels), the total variation."""
    problem = build("noise", teacher).problem
    seen = run(teacher, shown())
    divergences = []
    for layer, x in seen.norms:
        var, learnt = x.var((0, 2, 3)) + 1e-5, layer.running_var.numpy() + 1e-5
        gap = (x.mean((0, 2, 3)) - layer.running_mean.numpy()) ** 2
        divergences.append(np.log(np.sqrt(learnt / var)) + (var + gap) / (2 * learnt) - 0.5)
    expected = cross_entropy(seen.logits, LABELS.numpy())
    expected += 3 * np.concatenate(divergences).mean() + 0.05 * variation(shown().double().numpy())
    loss = inversion_loss(problem.look(IMAGES, AUGMENT, draws()), problem, LABELS)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
