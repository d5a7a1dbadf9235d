"""The engine's step beside a loop anyone would write, and InfoBatch's beside none: `step_overhead.py` on a GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from raytrain_speedup.data.batch import Step
from raytrain_speedup.methods.curriculum.base import FULL
from tests.benchmarks.gpu.rows import Kit, Row, Rows, table
from tests.benchmarks.step_overhead import engine_step, plain_step, random_splits

BATCHES = (128, 512)


def measure(rows: Rows, kit: Kit) -> str:
    for size in BATCHES[:1] if kit.tiny else BATCHES:
        rows.add(f"batch {size}", partial(_steps, kit, size), expected=20)
    columns = {"row": "", "plain": ",.0f", "engine": ",.0f", "infobatch": ",.0f"}
    columns |= {"engine_overhead": "+.1%", "infobatch_overhead": "+.1%", "infobatch_microseconds": "+.0f"}
    return f"Samples per second of the whole step; images on the device\n\n{table(rows.rows, columns)}"


def _steps(kit: Kit, size: int) -> Row:
    keys: dict[str, Any] = {"train.batch_size": size, "train.device": kit.device.type}
    if not kit.tiny:
        keys |= {"model.name": "resnet18", "train.precision": "bf16"}
    splits = random_splits()
    loop, engine = engine_step("none", splits, kit.scratch, device=kit.device, keys=keys)
    _, infobatch = engine_step("infobatch", splits, kit.scratch, device=kit.device, keys=keys)
    plain = plain_step(splits, device=kit.device, keys=keys)
    step = Step(0, torch.arange(size), torch.ones(size), size, 0.1, FULL)
    (batch,) = loop.loader.train_batches([step], epoch=0)
    forms = {"plain": plain, "engine": engine, "infobatch": infobatch}
    seconds = kit.seconds(
        {name: partial(form, step, batch) for name, form in forms.items()}, calls=40, repeats=9
    )
    return {name: size / taken for name, taken in seconds.items()} | {
        "engine_overhead": seconds["engine"] / seconds["plain"] - 1,
        "infobatch_overhead": seconds["infobatch"] / seconds["engine"] - 1,
        "infobatch_microseconds": 1e6 * (seconds["infobatch"] - seconds["engine"]),
    }
