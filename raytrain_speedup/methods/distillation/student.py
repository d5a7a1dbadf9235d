"""What the student learns from a batch of the pool: the teacher's softened outputs, one loss per sample.

    rng = generator_for(pool.rng_device, seed, SAMPLE, rank, step)
    inputs = student_inputs(pool.sample(256, rng), problem..., rng)
    losses = distillation_losses(student, teacher, inputs, temperature)     # (b,), a graph to the student
    losses.mean().backward()

The teacher runs without a graph and without hooks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.methods.distillation.losses import distillation_loss
from raytrain_speedup.methods.distillation.teacher import logits_of


def student_inputs(images: Tensor, how: Augment, rng: torch.Generator, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (b, C, H, W) of the pool, augmented and normalised.

    The augmentation works on 0..255, where shifts and flips are exact in any precision.

    Args:
        rng: on the images' device.
        mean, std: (C, 1, 1), for images in [0, 1].
    """
    return (augment(images.float(), how, rng) - 255 * mean) / (255 * std)


def distillation_losses(student: nn.Module, teacher: nn.Module, inputs: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at the temperature, times its square, for each sample (b,)."""
    with torch.no_grad():
        teacher_logits = logits_of(teacher(inputs))
    return distillation_loss(teacher_logits, logits_of(student(inputs)), temperature)
