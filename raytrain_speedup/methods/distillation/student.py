"""What the student learns from a batch of the pool: to answer as its teacher does.

    images = pool.sample(256, seed, rank, step)
    inputs = student_inputs(images, settings.augment, mean, std, seed, rank, step)
    target = teacher_logits(teacher, inputs)
    losses = distillation_loss(target, student(inputs), settings.temperature)  # `losses.py`; one per sample
    losses.mean().backward()

The teacher runs without a graph and without hooks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.methods.distillation.teacher import logits_of
from raytrain_speedup.randomness import AUGMENT, torch_generator


def student_inputs(images: Tensor, how: Augment, mean: Tensor, std: Tensor, *key: int) -> Tensor:
    """uint8 images (b, C, H, W) of the pool, augmented and normalised.

    The augmentation works on 0..255, where shifts and flips are exact in any precision.

    Args:
        mean, std: (C, 1, 1), for images in [0, 1].
        key: what decides the augmentation, such as (seed, rank, step).
    """
    varied = augment(images.float(), how, torch_generator(images.device, AUGMENT, *key))
    return (varied - 255 * mean) / (255 * std)


def teacher_logits(teacher: nn.Module, inputs: Tensor) -> Tensor:
    """What the student is to match, float32 without a graph: (b, K), or (b, K, H, W) for maps."""
    with torch.no_grad():
        return logits_of(teacher(inputs)).float()
