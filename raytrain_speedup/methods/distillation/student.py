"""What the student learns from a batch of the pool: the teacher's softened outputs, one loss per sample.

    images = pool.sample(256, seed, rank, step)
    inputs = student_inputs(images, settings.augment, mean, std, seed, rank, step)
    losses = distillation_losses(student, teacher, inputs, settings.temperature)
    losses.mean().backward()

The teacher runs without a graph and without hooks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.methods.distillation.losses import distillation_loss
from raytrain_speedup.methods.distillation.rng import AUGMENT, generator_for
from raytrain_speedup.methods.distillation.teacher import logits_of


def student_inputs(images: Tensor, how: Augment, mean: Tensor, std: Tensor, *key: int) -> Tensor:
    """uint8 images (b, C, H, W) of the pool, augmented and normalised.

    The augmentation works on 0..255, where shifts and flips are exact in any precision.

    Args:
        mean, std: (C, 1, 1), for images in [0, 1].
        key: what decides the augmentation, such as (seed, rank, step).
    """
    varied = augment(images.float(), how, generator_for(images.device, AUGMENT, *key))
    return (varied - 255 * mean) / (255 * std)


def distillation_losses(student: nn.Module, teacher: nn.Module, inputs: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at the temperature, times its square, for each sample (b,)."""
    with torch.no_grad():
        teacher_logits = logits_of(teacher(inputs))
    return distillation_loss(teacher_logits, logits_of(student(inputs)), temperature)
