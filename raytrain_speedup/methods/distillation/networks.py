"""The two networks: a teacher that is only ever asked, and a student that learns to answer as it does.

A frozen teacher is in evaluation mode and none of its parameters requires a gradient, so a backward pass
through it computes the gradient of its input and nothing else. What the student learns from a batch of the
pool:

    images = pool.sample(256, seed, rank, step)
    inputs = student_inputs(images, settings.augment, mean, std, seed, rank, step)
    target = teacher_logits(teacher, inputs)  # without a graph, and without hooks
    losses = distillation_loss(target, student(inputs), settings.temperature)  # `losses.py`; one per sample
    losses.mean().backward()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raytrain_speedup.methods.distillation.augment import Augment, augment
from raytrain_speedup.randomness import AUGMENT, torch_generator
from raytrain_speedup.settings import UserError


def freeze(network: nn.Module) -> nn.Module:
    """The same network in evaluation mode, with no parameter that requires or holds a gradient."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return network.eval()


@contextmanager
def borrowed(student: nn.Module, *, batch_statistics: bool = False) -> Iterator[nn.Module]:
    """The student as a fixed judge of images: evaluation mode, no parameter gradients; then as it was.

    Args:
        batch_statistics: whether its BN layers normalise by the batch, as in training, and not by what they learnt.
            They learn nothing from it.
    """
    norms = [m for m in student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = [(module, module.training) for module in student.modules()]
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        student.eval()
        if batch_statistics:
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
        yield student
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor, or the entry `out` (torchvision's segmentation models).

    Raises:
        UserError: for anything else.
    """
    if isinstance(output, Mapping) and "out" in output:
        output = output["out"]
    if not isinstance(output, Tensor):
        raise UserError(
            f"teacher: its output is a {type(output).__name__}, not a tensor or a dict with 'out'"
        )
    return output


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
