"""Images decoded on the fly by a few processes that stay for the whole run.

A worker is sent one request for one batch, which names the samples, the epoch and the stage of the
curriculum, so a new stage reaches it with the first batch of that stage. What needs single images of
different shapes happens there: decoding, random-resized-crop and RandAugment. With the kernel `resize` the
crop goes straight to the size of the stage, so that a JPEG is decoded at the smallest sufficient scale; the
Fourier kernels are exact only on the full-size crop, and reduce it on the device. The uint8 batch goes to
the device, where the operations of the device loader do the rest.

What a stage shows again is drawn when the batch is requested, and its files, kept by this process, travel
with the request: the worker decodes them like any other and crops them anew. A file that is not here (yet, or
any more) is read again, so what a batch shows does not depend on it.

With `data.decode=device` the processes only read, and `device_decode.py` does the rest, but for RandAugment.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from raytrain_speedup.data.appearance import as_target
from raytrain_speedup.data.base import CorruptSample, DataSettings, Source
from raytrain_speedup.data.batch import WARM_UP, AnySplit, Batch, Step
from raytrain_speedup.data.device_decode import DeviceDecoder
from raytrain_speedup.data.folders import some
from raytrain_speedup.data.loader import Loader
from raytrain_speedup.data.processes import START_METHOD
from raytrain_speedup.data.requests import BatchDataset, Decoded, Drawn, Request
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.data.unreadable import log
from raytrain_speedup.data.watchdog import watched
from raytrain_speedup.settings import Stalled, UserError

_LOOKED_AT = 16  # files, for their usual size


class Requests:
    """The requests of the current pass: a sampler that the loader points at a new list."""

    def __init__(self) -> None:
        self.pending: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.pending


class WorkerLoader(Loader):
    """A `Loader` over `DataLoader` workers, one group for training and one for evaluation."""

    def __init__(self, splits: Splits, settings: DataSettings, **options: Any) -> None:
        super().__init__(splits, settings, **options)
        self._groups: dict[str, _Group] = {}
        self.name = f"{settings.num_workers} loading processes"
        self._decoder = DeviceDecoder(self.device) if settings.decode == "device" else None
        if self._decoder is not None:
            self.name += ", JPEGs decoded by the device"
        self.files = KeptFiles()
        self._bytes_taken: int | None = None

    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        if self.splits.train.placed:
            self.warn_of_magnitude(steps, "on images with masks or boxes")
        elif self._decoder is not None:
            self.warn_of_magnitude(steps, "on JPEGs with data.decode=device; use workers for them")
        asked: deque[Batch] = deque()
        requests = self._requests(steps, epoch, asked)
        for step, decoded in zip(steps, self._decoded("train", requests), strict=True):
            if decoded.bytes_read is not None and step.number != WARM_UP:
                self._bytes_taken = (self._bytes_taken or 0) + decoded.bytes_read
            if step.stage.replay > 1 and step.number != WARM_UP:
                self.buffer.push({"index": step.index, "weight": step.weight})
                self.files.add(decoded.files, self.buffer.max_bytes - self.buffer.nbytes)
            batch = self._batch("train", asked.popleft(), _whole(decoded, step))
            view = batch.pop("view")
            each = torch.arange(len(view), device=self.device)
            inputs, target = self.appearance.show(
                batch["inputs"], batch["target"], each, view, step.stage, epoch, cropped=True
            )
            yield batch | {"inputs": inputs, "target": target}

    def _requests(self, steps: Sequence[Step], epoch: int, asked: deque[Batch]) -> Iterator[Request]:
        """What to decode for each step; `asked` gets the index, weight and view of all that it shows.

        Batches are requested before those ahead of them have come back, so the draws are made from a copy of the
        buffer: `self.buffer` holds what a run has seen that stops here.
        """
        ahead = self.buffer.copy()
        for step in steps:
            shown = self.replayed(ahead, {"index": step.index, "weight": step.weight}, step, epoch)
            view, fresh = self.views(shown["index"], step), len(step.index)
            asked.append(shown | {"view": view})
            size, magnitude = self.appearance.decoding(step.stage)
            yield Request(
                shown["index"].numpy(),
                size,
                "bicubic" if size == self.size else "lanczos",
                files=self.files.among(shown["index"][fresh:].tolist()),
                wanted=fresh if step.stage.replay > 1 else 0,
                drawn=Drawn(view.numpy(), epoch, magnitude),
            )

    def bytes_taken(self) -> int | None:
        """Of an index, by the processes that load."""
        taken, self._bytes_taken = self._bytes_taken, None
        return taken

    def bytes_to_replay(self) -> int:
        return usual_bytes(self.splits.train)

    def metrics(self) -> dict[str, float]:
        metrics = super().metrics()
        return metrics and metrics | {"replay_bytes": self.buffer.nbytes + self.files.nbytes}

    def eval_batches(self, split: AnySplit, *, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        batches_of_rank = self.positions_of_rank(split, batch_size, most)
        requests = (Request(index.numpy(), self.size) for index in batches_of_rank)
        for index, decoded in zip(batches_of_rank, self._decoded(split, requests), strict=True):
            batch = self._batch(split, {"index": index, "weight": torch.ones(len(index))}, decoded)
            inputs, target = self.appearance.plain(batch["inputs"]), as_target(batch["target"])
            yield batch | {"inputs": inputs, "target": target}

    def train_images(self, positions: Tensor) -> Tensor:
        (decoded,) = self._decoded("train", iter([Request(positions.numpy(), self.size)]))
        return decoded.images.to(self.device).permute(0, 3, 1, 2)

    def _batch(self, split: str, asked: Batch, decoded: Decoded) -> Batch:
        """What could be read of what was asked for, on the device; `inputs` are still uint8 (k, H, W, C), and
        masks uint8 too."""
        kept, placed = torch.from_numpy(decoded.kept), decoded.targets
        cpu = {name: tensor[kept] for name, tensor in asked.items()} | {"inputs": decoded.images}
        targets = self.source(split).targets  # NumPy's: those of an index are mapped, and torch warns of that
        cpu["target"] = torch.from_numpy(targets[cpu["index"].numpy()]) if placed is None else placed
        return {key: value.to(self.device, non_blocking=True) for key, value in cpu.items()}

    def close(self) -> None:
        for group in self._groups.values():
            group.close()
        self._groups.clear()
        if self._decoder is not None:
            self._decoder.close()

    def _decoded(self, split: str, requests: Iterator[Request]) -> Iterator[Decoded]:
        """The answers to the requests, in order, with what was skipped noted."""
        if split not in self._groups:
            self._groups[split] = self._start(split)
        skipped = self._skipped[split]
        answers = self._groups[split].run(requests)
        if self._decoder is not None:
            source, decoder = self.source(split), self._decoder
            answers = decoder.ahead(answers, lambda answer: _completed(answer, source, decoder))
        for decoded in answers:
            skipped.saw(len(decoded.kept) + len(decoded.skipped))
            for error in decoded.skipped:
                skipped.add(error)
            yield decoded

    def _start(self, split: str) -> _Group:
        source = self.source(split)
        source.prepare(self.settings.memory_limit_gb * 1e9)  # before workers start: see START_METHOD
        dataset = BatchDataset(source, self.settings, self.splits.channels, self.seed)
        return _Group(dataset, self.settings.num_workers, pin=self.device.type == "cuda")


def _completed(decoded: Decoded, source: Source, decoder: DeviceDecoder) -> Decoded:
    """With the images that the device decodes, and without those that it cannot."""
    encoded, count = decoded.encoded, len(decoded.kept)
    if encoded is None:
        return decoded
    squares, errors, readable = decoder.squares(source, encoded)
    images = torch.empty(count, *squares.shape[1:], dtype=torch.uint8, device=squares.device)
    others = np.setdiff1d(np.arange(count), encoded.row)
    images[encoded.row] = squares
    images[others] = decoded.images.to(images.device, non_blocking=True)
    stay = np.setdiff1d(np.arange(count), encoded.row[~readable])
    whole = replace(decoded, images=images, encoded=None, skipped=[*decoded.skipped, *errors])
    return whole if len(stay) == count else _rows(whole, stay)


def _rows(decoded: Decoded, rows: np.ndarray) -> Decoded:
    """Some samples of a batch, (n,) int64, or some of them again."""
    targets = None if decoded.targets is None else decoded.targets[rows]
    return replace(decoded, images=decoded.images[rows], targets=targets, kept=decoded.kept[rows])


def _whole(decoded: Decoded, step: Step) -> Decoded:
    """With `replay` - 1 samples drawn for each that was read, as the loop expects: where one cannot be decoded,
    those drawn are fewer, or some of them are shown twice."""
    times, read = step.stage.replay, int((decoded.kept < len(step.index)).sum())
    if len(decoded.kept) == read * times:
        return decoded
    again = np.arange(read, len(decoded.kept))  # rows of what was drawn, after those of what was read
    drawn = np.resize(again if len(again) else np.arange(read), read * (times - 1))
    return _rows(decoded, np.r_[:read, drawn])


class _Group:
    """A `DataLoader` whose processes persist, with one pass of requests after another."""

    def __init__(self, dataset: BatchDataset, workers: int, *, pin: bool) -> None:
        self._requests = Requests()
        self._workers, self._source = workers, dataset.source
        self._timeout = dataset.settings.timeout
        self._asked: deque[Request] = deque()
        self._loader = DataLoader(
            dataset,
            sampler=self._requests,
            batch_size=None,  # a request is a whole batch
            num_workers=workers,
            multiprocessing_context=START_METHOD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin,
            timeout=self._timeout if workers else 0,
            generator=torch.Generator(),  # without one it draws from the global generator in every pass
        )

    def run(self, requests: Iterator[Request]) -> Iterator[Decoded]:
        self._asked.clear()
        self._requests.pending = self._noted(requests)
        try:
            for decoded in (
                self._loader if self._workers else watched(self._loader, self._timeout, self._tell)
            ):
                self._asked.popleft()
                yield decoded
        except UserError as error:
            raise _without_traceback(error) from None
        except (RuntimeError, OSError, EOFError) as error:  # the last two if it died while sending
            if not self._lost_a_worker():
                if "timed out" in str(error) and self._asked:
                    raise self._stalled(self._asked[0]) from None
                raise
            raise UserError(
                f"data.num_workers={self._workers}: a worker process died ({error!r:.80}); it "
                "ran out of memory or of shared memory (/dev/shm): expected fewer workers or a smaller batch"
            ) from None

    def _noted(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            self._asked.append(request)
            yield request

    def _stalled(self, request: Request) -> Stalled:
        """A batch did not come from the processes."""
        return Stalled(
            f"data.timeout: no batch came from {self._workers} loading processes for {self._timeout:g} s; it is of "
            f"{self._places(request)}; expected a storage that answers, or more time"
        )

    def _tell(self) -> None:
        """A batch does not come that this process reads itself."""
        log.warning(
            "data.timeout: this process has read one batch for %g s, of %s; it goes on waiting, for it cannot be "
            "interrupted (loading processes can: data.num_workers=1 or more)",
            self._timeout,
            self._places(self._asked[0]) if self._asked else "files that it looks at before the first batch",
        )

    def _places(self, request: Request) -> str:
        """Where the samples of a request are that have to be read."""
        read = [index for index in request.index.tolist() if index not in request.files]
        return some(list(dict.fromkeys(self._source.locate(index).partition(" bytes ")[0] for index in read)))

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


def _without_traceback(error: UserError) -> UserError:
    """What a worker process raised; torch puts its traceback before it."""
    text = str(error)
    return UserError(text.strip().splitlines()[-1].partition(": ")[2]) if "Traceback" in text else error


class KeptFiles:
    """Encoded images by index, first in, first out.

    Encoded is the smallest form there is, and the only one that every crop and every size can be made from;
    it spares reading, not decoding. A file that had to leave is read again.

    Attributes:
        nbytes: memory they take.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._files: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def add(self, files: Mapping[int, bytes], max_bytes: int) -> None:
        """Let files in; the oldest make place until all take no more than `max_bytes`."""
        for index, file in files.items():
            self.nbytes += len(file) - len(self._files.pop(index, b""))
            self._files[index] = file
        while self.nbytes > max_bytes:
            self.nbytes -= len(self._files.popitem(last=False)[1])

    def among(self, indices: Sequence[int]) -> dict[int, bytes]:
        """Those of the samples asked for that are held."""
        return {index: self._files[index] for index in indices if index in self._files}


def usual_bytes(source: Source) -> int:
    """Mean size of a few files from all over a source; 0 where it has plain pixels, in memory already."""
    sizes = [0]
    for index in np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int).tolist():
        try:
            sizes.append(len(source.encoded(index) or b""))
        except CorruptSample:
            continue
    return sum(sizes) // max(1, len(sizes) - 1)
