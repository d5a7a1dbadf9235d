"""Images decoded on the fly by a few processes that stay for the whole run.

A worker is sent one request for one batch, which names the samples, the epoch and the stage of the
curriculum, so a new stage reaches it with the first batch of that stage. What needs single images of
different shapes happens there: decoding, random-resized-crop and RandAugment. With the kernel `resize` the
crop goes straight to the size of the stage, so that a JPEG is decoded at the smallest sufficient scale; the
Fourier kernels are exact only on the full-size crop, and reduce it on the device. The uint8 batch goes to
the device, where the operations of the device loader do the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raytrain_speedup.data import augment
from raytrain_speedup.data.base import CorruptSample, DataSettings, Source, Splits
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.data.decode import Box, Stored, read, shown_box
from raytrain_speedup.data.loader import Loader
from raytrain_speedup.data.randaugment import randaugment
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError

_REBUILT = 256  # samples of the replay buffer decoded at a time when a run is resumed


@dataclass(frozen=True)
class Request:
    """One batch to decode.

    Attributes:
        index: (b,) int64.
        size: side of the images wanted; smaller than full only where a crop goes straight to it.
        magnitude: of RandAugment, on timm's scale of 0 to 10; None and 0 leave the images alone.
        epoch: keys the randomness; None for evaluation, which is never augmented.
    """

    index: np.ndarray
    size: int
    magnitude: float | None
    epoch: int | None


@dataclass(frozen=True)
class Decoded:
    """What comes back for a request.

    Attributes:
        images: (k, size, size, C) uint8.
        masks: (k, size, size) uint8, of a dense source.
        kept: (k,) int64, positions in the request of the samples that could be read.
        skipped: the others.
    """

    images: Tensor
    masks: Tensor | None
    kept: np.ndarray
    skipped: list[CorruptSample]

    def pin_memory(self) -> Decoded:
        """Called by the `DataLoader`."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return Decoded(self.images.pin_memory(), masks, self.kept, self.skipped)


class Requests:
    """The requests of the current pass: a sampler that the loader points at a new list."""

    def __init__(self) -> None:
        self.pending: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.pending


class BatchDataset(Dataset):
    """Decodes whole batches, in a worker process."""

    def __init__(self, source: Source, settings: DataSettings, channels: int, seed: int) -> None:
        self.source, self.settings, self.channels, self.seed = source, settings, channels, seed

    def __getitem__(self, request: Request) -> Decoded:
        skipped: list[CorruptSample] = []
        stored: dict[int, Stored] = {}
        for position, index in enumerate(request.index.tolist()):
            try:
                stored[position] = read(self.source, index)
            except CorruptSample as error:
                skipped.append(error)
        images = np.empty((len(stored), request.size, request.size, self.channels), dtype=np.uint8)
        masks = np.empty(images.shape[:3], dtype=np.uint8) if self.source.dense else None
        kept: list[int] = []
        for (position, sample), box in zip(stored.items(), self._boxes(request, stored), strict=True):
            try:
                images[len(kept)] = self._image(sample, box, request)
                if masks is not None:
                    masks[len(kept)] = sample.square_mask(box, request.size)
            except CorruptSample as error:
                skipped.append(error)
                continue
            kept.append(position)
        count = len(kept)
        return Decoded(
            torch.from_numpy(images[:count]),
            None if masks is None else torch.from_numpy(masks[:count]),
            np.array(kept, dtype=np.int64),
            skipped,
        )

    def _boxes(self, request: Request, stored: dict[int, Stored]) -> list[Box]:
        """The part that each sample shows."""
        samples = list(stored.values())
        if request.epoch is None or self.settings.augment != "random-resized-crop":
            return [shown_box(sample.height, sample.width, request.size, self.settings) for sample in samples]
        boxes = augment.random_boxes(
            torch.from_numpy(request.index[list(stored)]),
            torch.tensor([sample.height for sample in samples]),
            torch.tensor([sample.width for sample in samples]),
            seed=self.seed,
            epoch=request.epoch,
            min_scale=self.settings.min_scale,
        )
        return [Box(*box) for box in boxes.T.tolist()]

    def _image(self, sample: Stored, box: Box, request: Request) -> np.ndarray:
        """(size, size, C) uint8."""
        image = sample.square(box, request.size)
        if not request.magnitude or request.epoch is None:
            return image
        return randaugment(image, request.magnitude, seed=self.seed, epoch=request.epoch, index=sample.index)


class WorkerLoader(Loader):
    """A `Loader` over `DataLoader` workers, one group for training and one for evaluation."""

    def __init__(self, splits: Splits, settings: DataSettings, **options: Any) -> None:
        super().__init__(splits, settings, **options)
        self._groups: dict[str, _Group] = {}
        self.name = f"{settings.num_workers} loading processes"

    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        if self.splits.dense:
            self.warn_of_magnitude(steps, "on images whose pixels have classes")
        requests = (
            Request(step.index.numpy(), self._decoded_size(step.stage), self._magnitude(step.stage), epoch)
            for step in steps
        )
        for step, decoded in zip(steps, self._decoded("train", requests), strict=True):
            fresh = self._batch("train", step.index, step.weight, decoded)
            if step.stage.replay > 1:
                fresh |= self._origin(len(fresh["index"]), self._magnitude(step.stage), epoch)
            batch = self.replayed(fresh, step, epoch)
            view = self.views(batch["index"], step)
            x, target = self._augmented(batch["inputs"], batch["target"], view, step.stage, epoch)
            yield batch | {"inputs": self.finish(x, view, step.stage, epoch), "target": target.long()}

    def state_dict(self) -> dict[str, Any]:
        """The replay buffer without its pixels: they are decoded again, as they were."""
        held = self.buffer.state_dict(without=("inputs", "target"))
        return {"replay": {name: tensor.cpu() for name, tensor in held.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        held = self.of_this_loader(state["replay"], {"index", "weight", "magnitude", "epoch"})
        self.buffer.load_state_dict({})
        if not held:
            return
        origins = torch.stack([held["epoch"], held["magnitude"]], 1)
        runs = torch.unique_consecutive(origins, dim=0, return_counts=True)[1].tolist()
        chunks = [part for run in held["index"].split(runs) for part in run.split(_REBUILT)]
        sizes = [len(chunk) for chunk in chunks]
        columns = {name: tensor.split(sizes) for name, tensor in held.items()}
        requests = (
            Request(index.numpy(), self.size, float(magnitude[0]), int(epoch[0]))
            for index, magnitude, epoch in zip(
                columns["index"], columns["magnitude"], columns["epoch"], strict=True
            )
        )
        for number, decoded in enumerate(self._decoded("train", requests)):
            again = self._batch("train", columns["index"][number], columns["weight"][number], decoded)
            magnitude, epoch = float(columns["magnitude"][number][0]), int(columns["epoch"][number][0])
            self.buffer.push(again | self._origin(len(again["index"]), magnitude, epoch))

    def _origin(self, count: int, magnitude: float | None, epoch: int) -> Batch:
        """With the index, what it takes to decode a sample of the replay buffer again."""
        full = {"magnitude": magnitude or 0.0, "epoch": float(epoch)}
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}  # they come back exactly
        return {name: torch.full((count,), value, **options) for name, value in full.items()}

    def eval_batches(self, split: Literal["val", "test"], *, batch_size: int) -> Iterator[Batch]:
        shares = self.share(split, batch_size)
        requests = (Request(index.numpy(), self.size, None, None) for index in shares)
        for index, decoded in zip(shares, self._decoded(split, requests), strict=True):
            batch = self._batch(split, index, torch.ones(len(index)), decoded)
            yield batch | {"inputs": self.plain(batch["inputs"]), "target": batch["target"].long()}

    def _magnitude(self, stage: Stage) -> float | None:
        """Of RandAugment, which would turn images and leave their masks."""
        return None if self.splits.dense else stage.magnitude

    def train_images(self, positions: Tensor) -> Tensor:
        (decoded,) = self._decoded("train", iter([Request(positions.numpy(), self.size, None, None)]))
        return decoded.images.to(self.device).permute(0, 3, 1, 2)

    def _decoded_size(self, stage: Stage) -> int:
        """The side that workers are asked for: that of the stage where a resize is all that leads to it.

        Samples that are shown again serve every stage, and so are decoded in full; masks are always full-size.
        """
        crops = self.settings.augment == "random-resized-crop"
        straight = crops and self.kernel == "resize" and stage.replay == 1 and not self.splits.dense
        return stage.size if straight and stage.size else self.size

    def _batch(self, split: str, index: Tensor, weight: Tensor, decoded: Decoded) -> Batch:
        """What could be read, on the device; `inputs` are still uint8 (k, H, W, C), and masks uint8 too."""
        kept, masks = torch.from_numpy(decoded.kept), decoded.masks
        cpu = {
            "inputs": decoded.images,
            "target": torch.from_numpy(self.source(split).targets)[index[kept]] if masks is None else masks,
            "index": index[kept],
            "weight": weight[kept],
        }
        return {key: value.to(self.device, non_blocking=True) for key, value in cpu.items()}

    def close(self) -> None:
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    def _augmented(
        self, images: Tensor, targets: Tensor, view: Tensor, stage: Stage, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """What is left for the device to do, up to normalised (b, C, H, W); masks move with the images."""
        if self.settings.augment != "random-resized-crop":
            position = torch.arange(len(view), device=self.device)
            images, targets = self.shifted(images, targets, position, view, epoch)
            return self.normalised(images, stage.size), targets
        key = {"seed": self.seed, "epoch": epoch}
        x = augment.mirror(self.normalised(images, stage.size), view, **key)
        if self.splits.dense:
            targets = augment.mirror(targets[:, None], view, **key)[:, 0]
        return x, targets

    def _decoded(self, split: str, requests: Iterator[Request]) -> Iterator[Decoded]:
        """The answers to the requests, in order, with what was skipped noted."""
        if split not in self._groups:
            self._groups[split] = self._start(split)
        skipped = self._skipped[split]
        for decoded in self._groups[split].run(requests):
            skipped.saw(len(decoded.kept) + len(decoded.skipped))
            for error in decoded.skipped:
                skipped.add(error)
            yield decoded

    def _start(self, split: str) -> _Group:
        source = self.source(split)
        source.prepare(self.settings.memory_limit_gb * 1e9)  # before the fork, so that workers share it
        dataset = BatchDataset(source, self.settings, self.splits.channels, self.seed)
        return _Group(dataset, self.settings.num_workers, pin=self.device.type == "cuda")


class _Group:
    """A `DataLoader` whose processes persist, with one pass of requests after another."""

    def __init__(self, dataset: BatchDataset, workers: int, *, pin: bool) -> None:
        self._requests = Requests()
        self._workers = workers
        self._loader = DataLoader(
            dataset,
            sampler=self._requests,
            batch_size=None,  # a request is a whole batch
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            generator=torch.Generator(),  # without one it draws from the global generator in every pass
        )

    def run(self, requests: Iterator[Request]) -> Iterator[Decoded]:
        self._requests.pending = requests
        try:
            yield from self._loader
        except (RuntimeError, OSError, EOFError) as error:  # the last two if it died while sending
            if not self._lost_a_worker():
                raise
            raise UserError(
                f"data.num_workers={self._workers}: a worker process died ({error!r:.80}); it "
                "ran out of memory or of shared memory (/dev/shm): expected fewer workers or a smaller batch"
            ) from None

    def _lost_a_worker(self) -> bool:
        workers = getattr(self._loader._iterator, "_workers", [])
        try:
            for worker in workers:
                worker.join(0.2)  # its connection may close a moment before it is gone
        except RuntimeError:  # and just then torch's handler of SIGCHLD says so
            return True
        return any(not worker.is_alive() for worker in workers)

    def close(self) -> None:
        iterator = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None
