"""The low-frequency crop against its naive forms, interleaved in one process; medians.

    python tests/benchmarks/crop.py [--threads 1] [--rounds 15] [--cpu-time]

First table: float32 images, the crop as two dense products, as this package computes it, and by torch.fft.
Second table: from uint8 images to a flipped, reduced and normalised batch, in the order of `crop_batch` and
in the orders one would write first. `--cpu-time` counts the processor's seconds instead of the clock's, for a
machine that other work shares.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain_speedup.methods.curriculum.crop import _axis, _columns_product, crop_batch, low_frequency_crop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop_by_fft(x: Tensor, size: int) -> Tensor:
    """The public implementation's form."""
    N = x.shape[-1]
    kept = slice(N // 2 - size // 2, N // 2 - size // 2 + size)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))[..., kept, kept]
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real * (size / N) ** 2


def crop_by_dense_products(x: Tensor, size: int) -> Tensor:
    """What a GPU runs: both products on the whole batch."""
    axis = _axis(x.shape[-1], size, "fourier", x.device, x.dtype)
    return _columns_product(axis.full @ x, axis, axis, None, None)


def flip_and_normalise_first(images: Tensor, size: int, flip: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The order of a usual pipeline: everything at full size, the reduction last."""
    x = (images.float() / 255 - mean) / std
    return crop_by_dense_products(torch.where(flip[:, None, None, None], x.flip(-1), x), size)


def flip_bytes_first(images: Tensor, size: int, flip: Tensor) -> Tensor:
    """The same crop and normalisation, the flip as a pass over the bytes."""
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return crop_batch(images, size, mean=MEAN, std=STD)


def medians(
    forms: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of each form, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(rounds + 1):
        for name, form in forms.items():
            start = clock()
            form()
            if round_:  # the first is the warm-up
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, rows: dict[int, dict[str, float]]) -> None:
    """Print Markdown: milliseconds, and how many times faster than the first column."""
    names = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| B | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for size, times in rows.items():
        cells = [f"{times[name]:.1f} ms ({times[names[0]] / times[name]:.1f}x)" for name in names]
        print(f"| {size} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 224, 224), generator=generator, dtype=torch.uint8)
    flip = torch.rand(64, generator=generator) < 0.5
    mean, std = (torch.tensor(metrics).view(-1, 1, 1) for metrics in (MEAN, STD))
    x = images.float() / 255

    crops, batches = {}, {}
    for B in (96, 128, 160, 192):
        crops[B] = medians(
            {
                "torch.fft": lambda B=B: crop_by_fft(x, B),
                "dense products": lambda B=B: crop_by_dense_products(x, B),
                "low_frequency_crop": lambda B=B: low_frequency_crop(x, B),
                "F.interpolate bicubic": lambda B=B: F.interpolate(x, (B, B), mode="bicubic", antialias=True),
            },
            options.rounds,
            clock,
        )
        batches[B] = medians(
            {
                "normalise, flip, crop": lambda B=B: flip_and_normalise_first(images, B, flip, mean, std),
                "flip bytes, crop, normalise": lambda B=B: flip_bytes_first(images, B, flip),
                "crop_batch": lambda B=B: crop_batch(images, B, mean=MEAN, std=STD, flip=flip),
            },
            options.rounds,
            clock,
        )
    print(
        f"64 x 3 x 224 x 224, CPU, {options.threads} thread(s), torch {torch.__version__}, {clock.__name__}"
    )
    table("From float32 images:", crops)
    table("From uint8 images, flipped and normalised:", batches)


if __name__ == "__main__":
    main()
