"""Does a stage of a curriculum save the time that it saves FLOPs? Throughput of every size, eager and compiled.

bf16, channels_last, batches that are on the device, a whole step with its optimizer. Compiled sizes come last:
each one costs tens of seconds before its first step.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from raytrain_speedup.engine.cost.measure import training_flops
from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.tasks.classification import Classification
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table

SIZES = {
    "resnet18": (32, 24, 16),
    "torchvision/resnet50": (224, 192, 160, 128, 96),
    "timm/deit_small_patch16_224": (224, 192, 160, 128, 96),
}
COMPILED = [
    ("resnet18", 32),
    ("resnet18", 16),
    ("torchvision/resnet50", 224),
    ("torchvision/resnet50", 96),
    ("timm/deit_small_patch16_224", 224),
    ("timm/deit_small_patch16_224", 96),
    ("torchvision/resnet50", 160),
    ("timm/deit_small_patch16_224", 160),
]
BATCH = {"resnet18": 512, "torchvision/resnet50": 256, "timm/deit_small_patch16_224": 256}
TINY_SIZES = {"resnet8": (32, 16)}
COMPILE_SECONDS = 40.0


def measure(rows: Rows, kit: Kit) -> str:
    sizes = TINY_SIZES if kit.tiny else SIZES
    for name, of_model in sizes.items():
        for size in of_model:
            rows.add(f"{name} {size}", partial(_throughput, kit, name, size, max(of_model)), expected=6)
    for name, size in [] if kit.tiny else COMPILED:
        work = partial(_throughput, kit, name, size, max(sizes[name]), compiled=True)
        rows.add(f"{name} {size} compiled", work, expected=COMPILE_SECONDS, like=f"{name} compiled")
    columns = {
        "row": "",
        "samples_per_second": ",.0f",
        "faster": ".2f",
        "fewer_flops": ".2f",
        "reached": ".2f",
    }
    return (
        "Times the full size's throughput, times fewer FLOPs, and how much of the one the other reaches\n\n"
        + table(_against_full(rows.rows), columns)
    )


def _throughput(kit: Kit, name: str, size: int, full: int, *, compiled: bool = False) -> Row:
    small = name not in BATCH or full == 32
    model = build_model(ModelSettings(name=name), num_classes=10 if small else 1000, image_size=size)
    flops = training_flops(model, Classification(), (3, size, size))
    model = model.to(kit.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = BATCH.get(name, 16)
    images = torch.randn(batch, 3, size, size, device=kit.device).to(memory_format=torch.channels_last)
    target = torch.arange(batch, device=kit.device) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        with torch.autocast(kit.device.type, torch.bfloat16):
            output = forward(images)
        F.cross_entropy(output.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):  # compilation, and the choice of convolutions
        step()
    seconds = kit.seconds({"step": step}, calls=10, repeats=3)["step"]
    return {
        "model": name,
        "size": size,
        "full": full,
        "compiled": compiled,
        "batch": batch,
        "samples_per_second": batch / seconds,
        "sample_flops": flops,
        "tflops_per_second": batch * flops / seconds / 1e12,
    }


def _against_full(rows: list[Row]) -> list[Row]:
    """Each row with its ratios to the full size of the same model in the same form."""
    measured = [row for row in rows if "samples_per_second" in row]
    whole = {(row["model"], row["compiled"]): row for row in measured if row["size"] == row["full"]}
    found = []
    for row in measured:
        full = whole.get((row["model"], row["compiled"]))
        if full is not None:
            faster = row["samples_per_second"] / full["samples_per_second"]
            fewer = full["sample_flops"] / row["sample_flops"]
            row = row | {"faster": faster, "fewer_flops": fewer, "reached": faster / fewer}
        found.append(row)
    return found
