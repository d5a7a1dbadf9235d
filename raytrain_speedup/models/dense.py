"""torchvision's networks for segmentation, as the engine wants a network: images in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPPPooling


def logits_alone(model: nn.Module) -> None:
    """Make a network that returns a dict return its logits (b, num_classes, H, W), and train on a single image.

    In place, and without changing the keys of its state dict: weights come from and go to torchvision as they
    are. The auxiliary head's logits, which only a loss of its own would train, are dropped, and the head is frozen
    (until `train_auxiliary_head`): several workers wait for a gradient of every parameter that asks for one.
    """
    if (head := getattr(model, "aux_classifier", None)) is not None:
        head.requires_grad_(False)
    for pooling in model.modules():
        if isinstance(pooling, ASPPPooling):
            for layer in pooling:
                if isinstance(layer, nn.BatchNorm2d):
                    layer.__class__ = PooledBatchNorm
    model.register_forward_hook(_take_out)


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of pooled features (b, C, 1, 1): a single image has no statistics and gets the running
    ones. Images of scenes are large, and one at a time on a worker is nothing unusual."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def train_auxiliary_head(model: nn.Module) -> bool:
    """Let the auxiliary head be trained: in training the network then returns a pair of logits, its answer and the
    head's. False where it has none."""
    if (head := getattr(model, "aux_classifier", None)) is None:
        return False
    head.requires_grad_(True)
    return True


def _take_out(model: nn.Module, inputs: Any, output: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    head = getattr(model, "aux_classifier", None)
    if model.training and head is not None and next(head.parameters()).requires_grad:
        return output["out"], output["aux"]
    return output["out"]
