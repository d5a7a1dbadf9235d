"""The images on which every student of a teacher is judged, made out of the teacher alone.

Agreement on images that a method has made itself compares nothing: noise agrees with noise. These depend on the
teacher and the shape of an image, not on the method, the settings or the seed of a run, so a search may compare
what it finds on them; no real image is among them. The teacher is inverted by a fixed recipe in the manner of
DeepInversion (Yin et al. 2020, https://arxiv.org/abs/1912.08795): pixels, begun as noise with a natural spectrum,
are moved until the teacher sees their classes in them and finds its own batch statistics. A recipe for every
teacher needs losses that do not depend on the teacher's scale: the statistics are compared by the KL divergence of
Gaussians.

Noise of several spectra and the images of random generators do not belong in the set: on digits agreement there
says nothing of accuracy (rank correlation .1 to .4; a student of noise is ahead of one of real images).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raytrain_speedup.methods.distillation import losses
from raytrain_speedup.methods.distillation.augment import Augment
from raytrain_speedup.methods.distillation.base import Problem, View
from raytrain_speedup.methods.distillation.pool import to_uint8
from raytrain_speedup.randomness import EVALUATE, torch_generator

IMAGES, DENSE_IMAGES, BATCHES = 384, 48, 3
"""How many there are, how many where every pixel is a decision, and in how many batches they are made."""

STEPS, RATE = 20, 0.1
"""Steps of Adam on the pixels of a batch, and its rate in units of their standard deviation."""

STATISTICS, SMOOTHNESS = 3.0, 0.05
"""Weights of the batch statistics and of the total variation beside the class loss."""

_EPS = 1e-5  # as in the layers themselves


def evaluation_images(problem: Problem) -> Tensor:
    """(N, C, H, W) uint8 on the device, the same for every run with this teacher.

    Args:
        problem: its teacher, statistics and image shape count; its student and its seed do not.
    """
    count = (DENSE_IMAGES if problem.dense else IMAGES) // BATCHES
    return torch.cat([_inverted(problem, part, count) for part in range(BATCHES)])


def natural_noise(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Gaussian noise (N, C, H, W) of std 1 whose amplitude falls with the frequency, as in photographs."""
    height, width = shape[-2:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    waves = torch.fft.rfft2(torch.randn(shape, generator=rng)) / frequency
    noise = torch.fft.irfft2(waves, s=(height, width))
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def inversion_loss(view: View, problem: Problem, target: Tensor) -> Tensor:
    """What the images are to the teacher: of their classes, where images have one, and with its statistics."""
    seen, probe = view.teacher, problem.probe
    loss = SMOOTHNESS * losses.total_variation(view.inputs)
    if not problem.dense:
        loss = loss + losses.class_loss(seen.logits, target)
    if probe.sizes:
        var, learnt = seen.var + _EPS, probe.running_var + _EPS
        gap = (seen.mean - probe.running_mean).square()
        loss = loss + STATISTICS * 0.5 * ((var + gap) / learnt - 1 - (var / learnt).log()).mean()
    return loss


def _inverted(problem: Problem, part: int, count: int) -> Tensor:
    """A batch; its noise is that of a CPU, whatever the device."""
    shape = (count, *problem.image_shape)
    pixels = natural_noise(shape, torch_generator("cpu", EVALUATE, part)).to(problem.device).requires_grad_()
    target = torch.arange(count, device=problem.device) % problem.num_classes
    moved = Augment(crop=max(1, problem.image_shape[-1] // 16), flip=False)
    shifts = torch_generator(problem.device, EVALUATE, part)
    optimizer = torch.optim.Adam([pixels], lr=RATE, betas=(0.5, 0.9), fused=True)
    for _ in range(STEPS):
        view = problem.look(_rendered(pixels, problem), moved, shifts)
        (pixels.grad,) = torch.autograd.grad(inversion_loss(view, problem, target), [pixels])
        optimizer.step()
    return to_uint8(_rendered(pixels, problem))


def _rendered(pixels: Tensor, problem: Problem) -> Tensor:
    """Normalised pixels as images in [0, 1]."""
    return (problem.mean + problem.std * pixels).clamp(0, 1)
