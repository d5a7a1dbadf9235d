"""All images in the memory of the training device: an epoch is a handful of gathers, without any process.

The set is decoded once, to uint8 at full size; shift, flip, crop, cutout, erasing and the curriculum's
bandwidth are operations on whole batches. Only RandAugment needs single images and is left to the worker
loader: a magnitude does nothing here, and says so once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from raytrain_speedup.data.appearance import as_target
from raytrain_speedup.data.base import DataSettings
from raytrain_speedup.data.batch import AnySplit, Batch, Step
from raytrain_speedup.data.decode import decode_all
from raytrain_speedup.data.loader import Loader
from raytrain_speedup.data.splits import Splits


class DeviceLoader(Loader):
    """A `Loader` whose sets live on the device; each split is decoded when it is first asked for."""

    name = "device loader"

    def __init__(self, splits: Splits, settings: DataSettings, **options: Any) -> None:
        super().__init__(splits, settings, **options)
        self._resident: dict[str, Resident] = {}

    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        data = self._load("train")
        index_E, weight_E, ends = self._epoch(steps, data)
        self.warn_of_magnitude(steps, "with data.loader=device; use workers for them")
        for step, (start, end) in zip(steps, pairwise(ends), strict=True):
            fresh = {"index": index_E[start:end], "weight": weight_E[start:end]}
            shown = self.replayed(self.buffer, fresh, step, epoch)
            index, view = shown["index"], self.views(shown["index"], step)
            inputs, target = self.appearance.show(
                data.images, data.targets, index, view, step.stage, epoch, cropped=False
            )
            yield shown | {"inputs": inputs, "target": target}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        held = {name: tensor.to(self.device) for name, tensor in state["replay"].items()}
        self.buffer.load_state_dict(held)

    def eval_batches(self, split: AnySplit, *, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        data = self._load(split)
        for positions in self.positions_of_rank(split, batch_size, most):
            index = positions[data.readable[positions]].to(self.device)
            yield {
                "inputs": self.appearance.plain(data.images[index]),
                "target": as_target(data.targets[index]),
                "index": index,
                "weight": torch.ones(len(index), device=self.device),
            }

    def train_images(self, positions: Tensor) -> Tensor:
        data = self._load("train")
        index = positions[data.readable[positions]].to(self.device)
        return data.images[index].permute(0, 3, 1, 2)

    def _epoch(self, steps: Sequence[Step], data: Resident) -> tuple[Tensor, Tensor, list[int]]:
        """Indices and weights of all steps in one transfer, and where each step begins and ends in them."""
        if not steps:
            return torch.empty(0), torch.empty(0), [0]
        index, weight = torch.cat([s.index for s in steps]), torch.cat([s.weight for s in steps])  # (E,)
        sizes = torch.tensor([len(step.index) for step in steps])  # (S,)
        keep = data.readable[index]  # (E,) bool
        step_of = torch.repeat_interleave(torch.arange(len(steps)), sizes)  # (E,)
        kept = torch.bincount(step_of[keep], minlength=len(steps))  # (S,)
        ends = [0, *kept.cumsum(0).tolist()]
        return index[keep].to(self.device), weight[keep].to(self.device), ends

    def _load(self, split: str) -> Resident:
        if split not in self._resident:
            source = self.source(split)
            images, placed, errors = decode_all(
                source,
                self.settings,
                self.size,
                self.splits.channels,
                quiet=self.rank > 0,
                title=f"decoding {split}",
            )
            # A copy, for those of an index are mapped and may not be written.
            targets = torch.tensor(source.targets) if placed is None else placed
            skipped = self._skipped[split]
            skipped.saw(len(source))
            readable = torch.ones(len(source), dtype=torch.bool)
            for error in errors:
                readable[error.index] = False
                skipped.add(error)
            self._resident[split] = Resident(images.to(self.device), targets.to(self.device), readable)
        return self._resident[split]


class Resident:
    """One split on the device.

    Attributes:
        images: (N, H, W, C) uint8; zeros where a sample cannot be read.
        targets: (N,) int64, masks (N, H, W) uint8, or boxes (N, M, 5) float32.
        readable: (N,) bool, on the CPU.
    """

    def __init__(self, images: Tensor, targets: Tensor, readable: Tensor) -> None:
        self.images, self.targets, self.readable = images, targets, readable
