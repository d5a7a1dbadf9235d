"""What a person would look at after an evaluation: PNG files."""

from __future__ import annotations

import colorsys
import io
import math

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from raytrain_speedup.data import IGNORE_INDEX, Loader
from raytrain_speedup.engine.evaluate import evaluating
from raytrain_speedup.tasks import Task

DECIDED = 8
"""Images of the validation split that are shown with their masks."""

_GOLDEN = (math.sqrt(5) - 1) / 2


@torch.inference_mode()
def decisions(model: nn.Module, task: Task, loader: Loader, *, autocast: torch.autocast) -> bytes:
    """A row of images of the validation split, of which one at least can be read; below it their masks, and the
    classes that the model gives their pixels."""
    batches = loader.eval_batches("val", batch_size=DECIDED)
    batch = next(batch for batch in batches if len(batch["inputs"]))
    with evaluating(model), autocast:
        prediction = model(batch["inputs"]).argmax(1)
    mean, std = (
        torch.tensor(values, device=loader.device).view(-1, 1, 1)
        for values in (loader.settings.mean, loader.settings.std)
    )
    images = (255 * (batch["inputs"] * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return mask_grid(images, task.classes(batch["target"]), prediction)


def image_grid(images: Tensor, columns: int) -> bytes:
    """Images (N, C, H, W) uint8 in rows of `columns`, as a PNG file."""
    grid = make_grid(images.cpu(), nrow=columns, padding=1)
    file = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


def mask_grid(images: Tensor, *masks: Tensor) -> bytes:
    """A row of images (N, C, H, W) uint8, and below it a row for each of the masks (N, H, W), in colours."""
    rows = [images.cpu().expand(-1, 3, -1, -1), *(coloured(mask.cpu()) for mask in masks)]
    return image_grid(torch.cat(rows), columns=len(images))


def coloured(mask: Tensor) -> Tensor:
    """Classes (N, H, W) as (N, 3, H, W) uint8: hues a golden section apart, so that neighbours differ; void is
    black."""
    colours = [
        colorsys.hsv_to_rgb(k * _GOLDEN % 1, 0.55 + 0.4 * (k % 2), 0.95 - 0.25 * (k % 3))
        for k in range(IGNORE_INDEX)
    ]
    palette = (torch.tensor([*colours, (0.0, 0.0, 0.0)]) * 255).to(torch.uint8)
    return palette[mask.long()].permute(0, 3, 1, 2)
