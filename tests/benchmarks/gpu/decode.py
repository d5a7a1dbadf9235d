"""JPEGs decoded by the loading processes and by nvjpeg (`data.decode`): images a second, alone and in training.

Real ImageNet files, random-resized-crop to 224 pixels, batches of 256. `cores` is what a second of it takes of the
processors, all processes together. Pixels are compared on the centres that evaluation shows.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from raytrain_speedup.data import Batch, Loader, Step, build_loader, open_data
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.models import ModelSettings, build_model
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table

FORMS = {"processes, 15": ("workers", 15), "processes, 4": ("workers", 4), "nvjpeg, 4": ("device", 4)}
BATCH, STEPS = 256, 24
DAMAGED = 40


def measure(rows: Rows, kit: Kit) -> str:
    for name, (decode, workers) in FORMS.items():
        rows.add(name, partial(_rates, kit, decode, workers), expected=25, like="rates")
    rows.add("pixels", partial(_difference, kit), expected=5)
    rows.add("damaged", partial(_damaged, kit), expected=5)
    rates = {"row": "", "loaded": ",.0f", "cores": ".1f", "trained": ",.0f", "ceiling": ",.0f"}
    rates |= {"training_cores": ".1f"}
    return (
        "Images a second of the loader alone (and the cores it takes), of training on it, and of training on a "
        f"batch that is there\n\n{table([row for row in rows.rows if 'loaded' in row], rates)}\n\n"
        "Difference of the pixels, in levels of 255\n\n"
        f"{table(rows.rows, {'mean_difference': '.3f', 'largest_difference': ''})}\n\n"
        f"{DAMAGED} files with 64 bytes of noise in their middle: left out by either\n\n"
        f"{table(rows.rows, {'by_processes': '', 'by_device': ''})}"
    )


def _loader(kit: Kit, decode: str, workers: int, file: Any = None) -> Loader:
    file = file or kit.data / "imagenet-sample.parquet"
    settings = ParquetSettings(
        train=file,
        test=file,
        label_column="wnid",
        image_size=32 if kit.tiny else 224,
        val_fraction=0,
        augment="random-resized-crop",
        loader="workers",
        num_workers=min(workers, 1) if kit.tiny else workers,
        decode=decode,
        max_corrupt_fraction=1,
    )
    data = open_data(settings, seed=0)
    return build_loader(data, settings, device=kit.device, seed=0, channels_last=True)


def _steps(loader: Loader, batch: int, steps: int) -> list[Step]:
    order = torch.arange(batch * steps) * 37 % len(loader.splits.train)
    return [
        Step(number, index, torch.ones(batch), batch, 0.0, FULL)
        for number, index in enumerate(order.split(batch))
    ]


def _rates(kit: Kit, decode: str, workers: int) -> Row:
    batch, steps = (8, 2) if kit.tiny else (BATCH, STEPS)
    loader = _loader(kit, decode, workers)
    step = _network(kit)
    found: Row = {}
    for epoch, (name, cores, work) in enumerate(
        [("loaded", "cores", lambda batch: None), ("trained", "training_cores", step)]
    ):
        batches = loader.train_batches(_steps(loader, batch, 2 * steps), epoch=epoch)
        _pass(kit, batches, work, steps)  # processes start, kernels are chosen, queues fill
        seconds, busy = _pass(kit, batches, work, steps)
        found |= {name: batch * steps / seconds, cores: busy / seconds}
        last = next(iter(loader.train_batches(_steps(loader, batch, 1), epoch=epoch)))
    loader.close()
    ceiling = kit.seconds({"step": partial(step, last)}, calls=10, repeats=3)["step"]
    return found | {"ceiling": batch / ceiling}


def _pass(
    kit: Kit, batches: Iterator[Batch], work: Callable[[Batch], None], steps: int
) -> tuple[float, float]:
    """Seconds, and those of all cores that this process and its children took."""
    begun, busy = time.perf_counter(), _busy()
    for _ in range(steps):
        work(next(batches))
    if kit.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, _busy() - busy


def _busy() -> float:
    here = psutil.Process()
    times = [process.cpu_times() for process in [here, *here.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def _network(kit: Kit) -> Callable[[Batch], None]:
    name = "resnet8" if kit.tiny else "torchvision/resnet50"
    model = build_model(ModelSettings(name=name), num_classes=1000, image_size=32 if kit.tiny else 224)
    model = model.to(kit.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step(batch: Batch) -> None:
        with torch.autocast(kit.device.type, torch.bfloat16):
            output = model(batch["inputs"])
        F.cross_entropy(output.float(), batch["target"]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _difference(kit: Kit) -> Row:
    images = []
    for decode in ("workers", "device"):
        loader = _loader(kit, decode, 4)
        images.append(loader.train_images(torch.arange(len(loader.splits.train))).int())
        loader.close()
    levels = (images[0] - images[1]).abs()
    return {"mean_difference": float(levels.float().mean()), "largest_difference": int(levels.max())}


def _damaged(kit: Kit) -> Row:
    """Noise in the middle of files, after which they go on and end as they should."""
    files = pq.read_table(kit.data / "imagenet-sample.parquet")["image"].to_pylist()[:DAMAGED]
    noise = torch.randint(0, 255, (len(files), 64), generator=torch.Generator().manual_seed(0)).tolist()
    stream = io.BytesIO()
    pq.write_table(
        pa.table(
            {
                "image": [
                    file[: len(file) // 2] + bytes(middle) + file[len(file) // 2 + 64 :]
                    for file, middle in zip(files, noise, strict=True)
                ],
                "wnid": ["one"] * len(files),
            }
        ),
        stream,
    )
    path = kit.scratch / "damaged.parquet"
    path.write_bytes(stream.getvalue())
    found: Row = {}
    for key, decode in (("by_processes", "workers"), ("by_device", "device")):
        loader = _loader(kit, decode, 1, path)
        for _ in loader.eval_batches("train", batch_size=len(files)):
            pass
        found[key] = loader.skipped["train"].count
        loader.close()
    return found
