"""The losses of data-free distillation, as pure functions of logits and statistics.

Logits are (B, K) for classification and (B, K, H, W) for segmentation: classes are dimension 1, and every
mean runs over all other dimensions, so a pixel counts as a sample does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bn_loss(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, sizes: Sequence[int]
) -> Tensor:
    """How far batch statistics are from a teacher's: the sum over layers of ||dmean||_2 + ||dvar||_2.

    Yin et al. 2020 (DeepInversion, https://arxiv.org/abs/1912.08795), eq. 4, as FastDFKD uses it.

    Args:
        mean, var: (C,) statistics of the inputs of all BN layers, one layer after another.
        running_mean, running_var: (C,) what the teacher learnt.
        sizes: channels of each layer; they sum to C.
    """
    gaps = [*(running_mean - mean).split(list(sizes)), *(running_var - var).split(list(sizes))]
    return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against the labels (B,) the images were asked to show (the one-hot loss, `oh`)."""
    return F.cross_entropy(logits, target)


def confidence_loss(logits: Tensor) -> Tensor:
    """Cross-entropy against the teacher's own decision: DAFL's one-hot loss, which asks for no labels."""
    return F.cross_entropy(logits, logits.argmax(1))


def balance_loss(logits: Tensor) -> Tensor:
    """The negative entropy of the mean prediction: lowest for a batch of equal fractions (DAFL, eq. 5)."""
    fraction = logits.softmax(1).transpose(0, 1).flatten(1).mean(1)
    return torch.special.xlogy(fraction, fraction).sum()


def activation_loss(features: Tensor) -> Tensor:
    """Minus the mean absolute feature before the teacher's last layer (DAFL, eq. 3)."""
    return -features.abs().mean()


def divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) of every sample, or of every pixel: the class dimension summed away."""
    student, teacher = student_logits.log_softmax(1), teacher_logits.log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Minus the mean divergence: images the student gets most wrong (ZSKT, DFQ)."""
    return -divergence(teacher_logits, student_logits).mean()


def decision_adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """The same, only where student and teacher decide alike: near the border, not past it (FastDFKD, CMI)."""
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return -(divergence(teacher_logits, student_logits) * agree).mean()


def discrepancy_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """-log(1 + mean |T - S|): bounded growth keeps the generator from running away (DFAD, sec. 3.2)."""
    return -torch.log1p((teacher_logits - student_logits).abs().mean())


def competition_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """1 - JS(teacher, student), JS in units of log 2 and so in [0, 1]: DeepInversion's adaptive term."""
    teacher, student = teacher_logits.log_softmax(1), student_logits.log_softmax(1)
    middle = torch.logaddexp(teacher, student) - math.log(2)
    js = F.kl_div(middle, teacher, reduction="none", log_target=True)
    js = js + F.kl_div(middle, student, reduction="none", log_target=True)
    return 1 - js.sum(1).mean() / (2 * math.log(2))


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, (B, C, H, W) -> scalar."""
    return images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()


def contrastive_loss(anchors: Tensor, positives: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """InfoNCE of unit embeddings (B, E) against the batch's other images and a bank (M, E) (CMI, eq. 5)."""
    others = torch.cat([positives, bank])
    target = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(anchors @ others.T / temperature, target)


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times its square (Hinton et al. 2015), for each sample (B,).

    The factor keeps the size of the gradient independent of the temperature. Pixels are averaged.
    """
    kl = divergence(teacher_logits / temperature, student_logits / temperature) * temperature**2
    return kl.flatten(1).mean(1) if kl.dim() > 1 else kl
