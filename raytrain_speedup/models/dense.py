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
    are. The auxiliary head's logits, which only a loss of its own would train, are dropped, and the head is frozen:
    several workers wait for a gradient of every parameter that asks for one.
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


def _take_out(model: nn.Module, inputs: Any, output: Mapping[str, Tensor]) -> Tensor:
    return output["out"]
