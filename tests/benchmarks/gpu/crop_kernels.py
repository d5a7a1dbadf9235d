"""The low-frequency crop on a GPU, against torch.fft and a plain copy of as many bytes."""

from __future__ import annotations

from functools import partial

import torch

from raytrain_speedup.methods.curriculum.crop import crop_batch, low_frequency_crop
from tests.benchmarks.crop import MEAN, STD, crop_by_fft
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table

FULL, SIZES, BATCH = 224, (96, 128, 160, 192), 256


def measure(rows: Rows, kit: Kit) -> str:
    for size in SIZES[:1] if kit.tiny else SIZES:
        rows.add(f"{FULL} to {size}", partial(_rates, kit, size), expected=5)
    columns = {
        "row": "",
        "copy": ",.0f",
        "crop": ",.0f",
        "fft": ",.0f",
        "bytes_copy": ",.0f",
        "batch": ",.0f",
    }
    columns |= {"milliseconds": ".2f", "batch_milliseconds": ".2f", "times_fft": ".1f"}
    return (
        "GB/s, bytes read and written. `copy`, `crop` and `fft`: float32 to float32. `batch`: uint8 to float32, "
        f"flipped, reduced and normalised, beside `bytes_copy`\n\n{table(rows.rows, columns)}"
    )


def _rates(kit: Kit, size: int) -> Row:
    """GB/s of each form, its copy moving the same bytes."""
    number = 4 if kit.tiny else BATCH
    images = torch.randint(0, 256, (number, 3, FULL, FULL), device=kit.device, dtype=torch.uint8)
    x, flip = images.float(), torch.arange(number, device=kit.device) % 2 == 0
    written = number * 3 * size**2 * 4
    moved = {"crop": x.numel() * 4 + written, "batch": x.numel() + written}
    source = torch.empty(moved["crop"] // 8, device=kit.device)
    byte_source = torch.empty(moved["batch"] // 8, device=kit.device)
    forms = {
        "copy": partial(torch.empty_like(source).copy_, source),
        "crop": partial(low_frequency_crop, x, size),
        "fft": partial(crop_by_fft, x, size),
        "bytes_copy": partial(torch.empty_like(byte_source).copy_, byte_source),
        "batch": partial(crop_batch, images, size, mean=MEAN, std=STD, flip=flip),
    }
    seconds = kit.seconds(forms, calls=10, repeats=5)
    bytes_of = {name: moved["batch" if "b" in name else "crop"] for name in forms}
    return {name: bytes_of[name] / taken / 1e9 for name, taken in seconds.items()} | {
        "milliseconds": 1e3 * seconds["crop"],
        "batch_milliseconds": 1e3 * seconds["batch"],
        "times_fft": seconds["fft"] / seconds["crop"],
    }
