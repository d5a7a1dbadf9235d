"""JPEG files decoded by the training device: nvjpeg on a GPU, which leaves the CPU's cores their time.

The loading processes then only read (`data.decode=device`): a batch of files comes in one piece of memory with
the part that each image is to show, and the device decodes them in full and resamples the parts as `decode.py`
does. A thread is one batch ahead, in a stream of its own, so that the decoder works while the network trains.
Files of other kinds (PNG, JPEGs of four colours or without an end) are decoded by the processes as ever.

Resampling one image after the other takes three kernels for each, which is more of the host's time than of the
GPU's. Here a batch is two products of matrices, of all parts in a block of zeros: each row of a matrix has the
weights of one output pixel, those of the anti-aliased filters that torch and Pillow have.

nvjpeg is less strict than libjpeg-turbo: a damaged block inside a file is shown as it comes. `speedup data check`
finds such files beforehand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raytrain_speedup.data.base import Buffer, CorruptSample, Source
from raytrain_speedup.data.decode import Resampling, decode
from raytrain_speedup.data.unreadable import log

BLOCK = 1 << 25
"""Values of a block of parts, padded: 128 MiB of float32. One part alone may be larger."""


class File(NamedTuple):
    """One of `Encoded`."""

    row: int
    sample: int
    content: Buffer
    part: tuple[int, int, int, int]


@dataclass(frozen=True)
class Encoded:
    """The files of a batch that the device is to decode.

    Attributes:
        row: (j,) int64, in the batch.
        sample: (j,) int64, in the source.
        content: (bytes,) uint8, one file after the other.
        end: (j,) int64, where each ends in it.
        part: (j, 4) int64, what is shown of each: left, top, right, bottom, in pixels.
        size: of the images wanted.
        resampling: what brings a part to that size.
    """

    row: np.ndarray
    sample: np.ndarray
    content: Tensor
    end: np.ndarray
    part: np.ndarray
    size: int
    resampling: Resampling

    @staticmethod
    def of(files: Sequence[File], size: int, resampling: Resampling) -> Encoded:
        """Of some files, in one piece of memory."""
        end = np.cumsum([len(file.content) for file in files], dtype=np.int64)
        content = np.empty(end[-1], dtype=np.uint8)
        for file, last in zip(files, end.tolist(), strict=True):
            content[last - len(file.content) : last] = np.frombuffer(file.content, dtype=np.uint8)
        row, sample = (np.array([file[field] for file in files], dtype=np.int64) for field in (0, 1))
        part = np.array([file.part for file in files], dtype=np.int64)
        return Encoded(row, sample, torch.from_numpy(content), end, part, size, resampling)

    def files(self) -> list[Tensor]:
        """(bytes,) uint8 each, views."""
        return list(self.content.split(np.diff(self.end, prepend=0).tolist()))


class DeviceDecoder:
    """Decodes the files of batches, one batch ahead of whoever takes them.

    Args:
        device: where the images are wanted. Other devices than NVIDIA's get them from this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._decodes = device if device.type == "cuda" else torch.device("cpu")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._warned = False

    def squares(self, source: Source, encoded: Encoded) -> tuple[Tensor, list[CorruptSample], np.ndarray]:
        """The images of a batch's files.

        Args:
            source: whose files they are, for messages.

        Returns:
            (j, size, size, 3) uint8 on the device, what could not be decoded, and (j,) bool: which could.
        """
        whole, errors = self._decoded(source, encoded, encoded.files())
        kept = np.array([image is not None for image in whole], dtype=bool)
        blank = torch.zeros(3, 1, 1, dtype=torch.uint8, device=self._decodes)
        parts = [
            blank if image is None else image[:, top:bottom, left:right]
            for image, (left, top, right, bottom) in zip(whole, encoded.part.tolist(), strict=True)
        ]
        return resample_parts(parts, encoded.size, encoded.resampling).to(self.device), errors, kept

    def ahead(self, work: Iterator[Any], complete: Any) -> Iterator[Any]:
        """`complete` of each, in order, computed while the one before it is used."""
        waiting: Future[Any] | None = None
        try:
            for each in work:
                following = self._thread.submit(self._in_stream, complete, each)
                if waiting is not None:
                    yield self._taken(waiting)
                waiting = following
            if waiting is not None:
                yield self._taken(waiting)
                waiting = None
        finally:
            if waiting is not None:
                with contextlib.suppress(Exception):
                    waiting.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _decoded(
        self, source: Source, encoded: Encoded, files: list[Tensor]
    ) -> tuple[list[Tensor | None], list[CorruptSample]]:
        """(3, H, W) uint8 each, None for those that could not be decoded."""
        try:
            return list(_decode_jpegs(files, self._decodes)), []
        except RuntimeError as error:  # of one of them, it does not say which
            refusal = str(error).splitlines()[0]
        images: list[Tensor | None] = []
        errors = []
        for index, file in zip(encoded.sample.tolist(), files, strict=True):
            try:
                pixels = decode(file.numpy().tobytes(), source, index)
                images.append(torch.from_numpy(pixels).permute(2, 0, 1).to(self._decodes))
            except CorruptSample as error:
                images.append(None)
                errors.append(error)
        if not errors and not self._warned:
            self._warned = True
            log.warning(
                "data.decode=device: the decoder of %s refuses what this process can read (%s); such batches are "
                "decoded by this process, which is slow",
                self._decodes,
                refusal,
            )
        return images, errors

    def _in_stream(self, complete: Any, each: Any) -> tuple[Any, Any]:
        if self._stream is None:
            return complete(each), None
        with torch.cuda.stream(self._stream):
            found = complete(each)
            return found, self._stream.record_event()

    def _taken(self, waiting: Future[Any]) -> Any:
        found, event = waiting.result()
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in (found.images, found.targets):
                if tensor is not None and tensor.is_cuda:
                    tensor.record_stream(current)  # or its memory would be given away while it is used
        return found


def _decode_jpegs(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """torchvision's decoder, which is to move to TorchCodec: it warns of that."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)


def resample_parts(parts: Sequence[Tensor], size: int, resampling: Resampling) -> Tensor:
    """Images of any shape to one, with anti-aliasing, as `decode.resample` does one: within a level of it.

    Args:
        parts: (3, h, w) uint8 each.
        size: wanted.

    Returns:
        (k, size, size, 3) uint8.
    """
    out = torch.empty(len(parts), size, size, 3, dtype=torch.uint8, device=parts[0].device)
    for block in _blocks([tuple(part.shape[1:]) for part in parts]):
        out[torch.tensor(block, device=out.device)] = _block([parts[i] for i in block], size, resampling)
    return out


def _blocks(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Positions of parts of similar shape, as many as a block may hold."""
    block: list[int] = []
    height = width = 0
    for position in sorted(range(len(shapes)), key=lambda i: max(shapes[i])):
        h, w = shapes[position]
        height, width = max(height, h), max(width, w)
        if block and 3 * (len(block) + 1) * height * width > BLOCK:
            yield block
            block, height, width = [], h, w
        block.append(position)
    if block:
        yield block


def _block(parts: Sequence[Tensor], size: int, resampling: Resampling) -> Tensor:
    """(k, size, size, 3) uint8: along the rows, then along the columns, rounded in between as libraries do."""
    heights, widths = (torch.tensor([part.shape[axis] for part in parts]) for axis in (1, 2))
    H, W = int(heights.max()), int(widths.max())
    block = torch.zeros(len(parts), 3, H, W, dtype=torch.uint8, device=parts[0].device)
    for row, part in zip(block, parts, strict=True):
        row[:, : part.shape[1], : part.shape[2]] = part
    across, down = (
        filter_weights(lengths.to(block.device), size, resampling) for lengths in (widths, heights)
    )
    x = block.view(len(parts), 3 * H, W).float() @ across.mT  # (k, 3 H, size)
    x = _level(x).view(-1, 3, H, size).permute(0, 2, 1, 3).reshape(-1, H, 3 * size)
    x = _level(down @ x)  # (k, size, 3 size)
    return x.view(-1, size, 3, size).permute(0, 1, 3, 2).to(torch.uint8)


def _level(x: Tensor) -> Tensor:
    """Halves go up, as in those libraries; in place."""
    return x.add_(0.5).floor_().clamp_(0, 255)


def filter_weights(lengths: Tensor, size: int, resampling: Resampling) -> Tensor:
    """The weights of each output pixel on the pixels of a row: (k, size, most) float32, each sums to one.

    As Pillow's and torch's anti-aliased ones: the filter (Keys' cubic with a = -1/2, or Lanczos with three lobes)
    is as many times wider as the row gets shorter, and cut off at the row's ends.

    Args:
        lengths: (k,) int64, of the rows; `most` is the largest of them.
        size: of the output.
    """
    scale = lengths.double()[:, None, None] / size
    wider = scale.clamp_min(1)
    reach = (2 if resampling == "bicubic" else 3) * wider
    centre = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale  # (k, size, 1)
    pixel = torch.arange(int(lengths.max()), device=lengths.device)
    first = (centre - reach + 0.5).trunc().clamp_min(0)
    last = torch.minimum((centre + reach + 0.5).trunc(), lengths[:, None, None])
    x = (pixel - centre + 0.5) / wider  # (k, size, most)
    weights = (_cubic(x) if resampling == "bicubic" else _lanczos(x)) * ((pixel >= first) & (pixel < last))
    return (weights / weights.sum(-1, keepdim=True)).float()


def _cubic(x: Tensor) -> Tensor:
    """Keys, "Cubic convolution interpolation for digital image processing" (1981), a = -1/2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
