"""What a stage of the curriculum shows of stored samples: the one place that says so, for every loader.

A stored image is cropped or shifted, flipped, normalised, brought to the size of the stage, cut out and erased,
in this order, and its mask or boxes move with it. Worker processes can do a part of that before (`decoding`),
because decoding at a smaller scale is cheaper and RandAugment wants single images: then `show` is told that the
images come cropped, and does the rest. Each of the three ways through it lowers the bandwidth once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from raytrain_speedup.data import augment
from raytrain_speedup.data.base import Augment, DataSettings
from raytrain_speedup.data.boxes import flip_boxes, move_boxes, reduce_boxes
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.methods.curriculum.base import Kernel, Stage
from raytrain_speedup.methods.curriculum.crop import crop_batch, low_frequency_crop

FLIPS: dict[Augment, augment.Flip] = {"crop-flip": "random", "crop-alternating-flip": "alternating"}
"""How those augmentations that shift also flip."""


class Decoding(NamedTuple):
    """What a stage wants of the processes that decode.

    Attributes:
        size: of the images, in pixels.
        magnitude: of RandAugment, on timm's scale of 0 to 10.
    """

    size: int
    magnitude: float


class Appearance:
    """Shows samples as a stage does.

    Args:
        seed: of the augmentation.
        kernel: how the bandwidth of a batch is lowered to that of the stage.
        memory_format: of the inputs.
    """

    def __init__(
        self,
        splits: Splits,
        settings: DataSettings,
        *,
        seed: int,
        kernel: Kernel,
        memory_format: torch.memory_format,
    ) -> None:
        self.settings, self.seed, self.kernel, self.memory_format = settings, seed, kernel, memory_format
        self.size, self.dense = splits.image_size, splits.dense
        self.boxed, self.placed = splits.targets == "boxes", splits.train.placed
        self.padding = self.size // 8 if settings.padding is None else settings.padding
        self.crops = settings.augment == "random-resized-crop"

    def magnitude(self, stage: Stage) -> float:
        """Of RandAugment: the stage's, or that of the settings where the curriculum leaves it open."""
        return self.settings.randaugment if stage.magnitude is None else stage.magnitude

    def decoding(self, stage: Stage) -> Decoding:
        """What processes decode for a stage.

        Its own size where a resize is all that leads to it: the Fourier kernels are exact only on the full-size
        crop. Masks and boxes are always those at full size, and so are their images; RandAugment would turn images
        and leave those.
        """
        straight = self.crops and self.kernel == "resize" and not self.placed
        size = stage.size if straight and stage.size else self.size
        return Decoding(size, 0.0 if self.placed else self.magnitude(stage))

    def show(
        self,
        images: Tensor,
        targets: Tensor,
        position: Tensor,
        view: Tensor,
        stage: Stage,
        epoch: int,
        *,
        cropped: bool,
    ) -> tuple[Tensor, Tensor]:
        """Inputs (b, C, h, w) float32 at the size of the stage, and their targets: int64, or boxes in the inputs'
        pixels.

        Args:
            images: (N, H, W, C) uint8; `targets` likewise, (N,), masks (N, H, W), or boxes (N, M, 5) float32.
            position: (b,) int64, which of them to show.
            view: (b,) int64, keys the randomness beside the epoch; see `Loader.views`.
            cropped: whether random-resized-crop was done by whoever decoded, straight to the size asked for.
        """
        if not self.crops:
            images, targets = self._shifted(images, targets, position, view, epoch)
            x = self._normalised(images, stage.size)
        elif cropped:
            flip = augment.coins(view, seed=self.seed, epoch=epoch)
            x = self._normalised(images[position], stage.size, flip)
            targets = self._flipped(targets[position], flip)
        else:
            x, targets = self._cropped(images[position], targets[position], view, epoch)
            if stage.size is not None:
                x = low_frequency_crop(x, stage.size, self.kernel)
        if self.boxed:
            targets = reduce_boxes(targets, self.size, x.shape[-1], self.kernel)
        return self._blanked(x, view, epoch).contiguous(memory_format=self.memory_format), as_target(targets)

    def plain(self, images: Tensor) -> Tensor:
        """(b, H, W, C) uint8 on the device to what the network sees of it in evaluation."""
        return self._normalised(images).contiguous(memory_format=self.memory_format)

    def unnormalised(self, x: Tensor) -> Tensor:
        """Inputs (b, C, H, W) as uint8 images again."""
        mean, std = (
            torch.tensor(values, device=x.device).view(-1, 1, 1)
            for values in (self.settings.mean, self.settings.std)
        )
        return (255 * (x * std + mean)).round().clamp(0, 255).to(torch.uint8)

    def _shifted(
        self, images: Tensor, targets: Tensor, position: Tensor, view: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """(b, H, W, C) uint8 as the crops that only shift vary them, and the targets; masks and boxes move too."""
        kind = self.settings.augment
        if kind == "none":
            return images[position], targets[position]

        def move(planes: Tensor) -> Tensor:
            return augment.shift_and_flip(
                planes,
                position,
                view,
                seed=self.seed,
                epoch=epoch,
                padding=self.padding,
                flip=FLIPS.get(kind),
            )

        if self.dense:
            return move(images), move(targets[..., None])[..., 0]
        return move(images), self._shifted_boxes(targets[position], view, epoch)

    def _shifted_boxes(self, targets: Tensor, view: Tensor, epoch: int) -> Tensor:
        """Targets (b, ...) of images that were shifted and flipped; boxes move, classes stay."""
        if not self.boxed:
            return targets
        key: dict[str, Any] = {"seed": self.seed, "epoch": epoch}
        shift = augment.shifts(view, **key, padding=self.padding).flip(0).T.to(targets.dtype)  # (b, 2): x, y
        moved = move_boxes(targets, torch.ones_like(shift), -shift, self.size)
        kind = FLIPS.get(self.settings.augment)
        return moved if kind is None else self._flipped(moved, augment.coins(view, **key, kind=kind))

    def _flipped(self, targets: Tensor, flip: Tensor) -> Tensor:
        """Targets (b, ...) at full size of images that `flip` (b,) names were flipped among."""
        if self.dense:
            return augment.flip(targets, flip)
        return flip_boxes(targets, flip, self.size) if self.boxed else targets

    def _cropped(self, images: Tensor, targets: Tensor, view: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """(b, C, H, W) normalised, cropped at random and at full size, and their targets."""
        key: dict[str, Any] = {"seed": self.seed, "epoch": epoch}
        side = torch.full_like(view, self.size)
        boxes = augment.random_boxes(view, side, side, **key, min_scale=self.settings.min_scale)
        x = augment.crop_and_resize(self._normalised(images), boxes)
        flip = augment.coins(view, **key)
        if self.dense:
            targets = augment.crop_and_resize(targets[:, None].float(), boxes, mode="nearest")[:, 0]
        elif self.boxed:
            corner, sides = boxes.T.to(targets.dtype).split(2, 1)  # (b, 2) each
            targets = move_boxes(targets, self.size / sides, -corner * self.size / sides, self.size)
        return augment.flip(x, flip), self._flipped(targets, flip)

    def _blanked(self, x: Tensor, view: Tensor, epoch: int) -> Tensor:
        """Cutout and random erasing of normalised (b, C, h, w)."""
        settings = self.settings
        if settings.cutout:
            size = max(1, round(settings.cutout * x.shape[-1] / self.size))
            x = augment.cutout(x, view, seed=self.seed, epoch=epoch, size=size)
        if settings.erasing:
            x = augment.erase(x, view, seed=self.seed, epoch=epoch, probability=settings.erasing)
        return x

    def _normalised(self, images: Tensor, size: int | None = None, flip: Tensor | None = None) -> Tensor:
        """(b, H, W, C) uint8 on the device to normalised (b, C, size, size) float32, in any layout; those that
        `flip` (b,) names are flipped before their bandwidth is lowered."""
        planes = images.permute(0, 3, 1, 2)  # (b, C, H, W), a view
        size = size or planes.shape[-1]
        mean, std = self.settings.mean, self.settings.std
        return crop_batch(planes, size, mean=mean, std=std, flip=flip, kernel=self.kernel)


def as_target(targets: Tensor) -> Tensor:
    """Targets as a task sees them: classes int64, boxes float32."""
    return targets if targets.is_floating_point() else targets.long()
