"""What the engine's step costs beside a loop anyone would write, and InfoBatch's beside none.

    OMP_NUM_THREADS=1 python tests/benchmarks/step_overhead.py [rounds]

ResNet-8 on random images of CIFAR's shape, batch 128, SGD, one CPU thread. The three forms take turns, step by
step, so that a busy machine disturbs all alike; told are medians, and the fastest step, which nothing
disturbed. The plain loop has the same batch, model and optimizer, its learning rate from the same function,
and no scores, alarm or average.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from raytrain_speedup.config import Experiment, load_experiment_dict
from raytrain_speedup.data import Splits
from raytrain_speedup.data.base import ArraySource
from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.learner import DTYPES
from raytrain_speedup.engine.learning_rate import learning_rate
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.optimizer import build_optimizer, set_learning_rate
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.models import build_model

SAMPLES, BATCH = 1024, 128
CPU = torch.device("cpu")
NO_KEYS: Mapping[str, Any] = MappingProxyType({})


def random_splits() -> Splits:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SAMPLES, 32, 32, 3), dtype=torch.uint8, generator=random).numpy()
    source = ArraySource(images, torch.arange(SAMPLES).remainder(10).numpy(), "random")
    return Splits(source, source, source, 10, 3, 32, tuple("0123456789"), "random")


def experiment(method: str, keys: Mapping[str, Any]) -> Experiment:
    """ResNet-8 unless `keys`, which are overrides, say otherwise."""
    settings = load_experiment_dict(
        {
            "name": "overhead",
            "data": {"source": "cifar10"},  # replaced by random images
            "model": {"name": "resnet8"},
            "train": {"epochs": 10, "batch_size": BATCH, "channels_last": True},
            "pruning": {"method": method},
        }
    )
    return settings.with_overrides(keys)


def engine_step(
    method: str,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device = CPU,
    keys: Mapping[str, Any] = NO_KEYS,
) -> tuple[Loop, Callable[[Step, dict], None]]:
    loop, _ = assemble(experiment(method, keys), splits, LocalReporter(folder / method), Stopwatch(device))
    loop.model.train()

    def step(step: Step, batch: dict) -> None:
        loop.train_step(step, batch, advance=0.001)
        loop.reporter.progress({"epoch": 1})

    return loop, step


def plain_step(
    splits: Splits, *, device: torch.device = CPU, keys: Mapping[str, Any] = NO_KEYS
) -> Callable[[Step, dict], None]:
    settings = experiment("none", keys)
    model = build_model(settings.model, num_classes=10, image_size=32)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    precision = settings.train.precision
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    optimizer = build_optimizer(model, settings.train)

    def step(step: Step, batch: dict) -> None:
        set_learning_rate(optimizer, learning_rate(step.progress, settings.train))
        with autocast:
            output = model(batch["inputs"])
        F.cross_entropy(output.float(), batch["target"]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    splits = random_splits()
    with tempfile.TemporaryDirectory() as folder:
        loop, none = engine_step("none", splits, Path(folder))
        _, infobatch = engine_step("infobatch", splits, Path(folder))
        forms = {"plain loop": plain_step(splits), "engine, none": none, "engine, infobatch": infobatch}
        index = torch.arange(BATCH)
        step = Step(0, index, torch.ones(BATCH), BATCH, 0.1, FULL)
        (batch,) = loop.loader.train_batches([step], epoch=0)
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(rounds):
            for name, form in forms.items():
                begun = time.perf_counter()
                form(step, batch)
                seconds[name].append(time.perf_counter() - begun)
    print(
        f"ResNet-8, batch {BATCH} x 3 x 32 x 32, one thread, {rounds} interleaved rounds, torch {torch.__version__}"
    )
    print(f"{'form':20} {'median ms':>10} {'ratio':>8} {'fastest ms':>11} {'ratio':>8}   (to the form above)")
    before: list[float] = []
    for name, times in seconds.items():
        median, fastest = statistics.median(times) * 1e3, min(times) * 1e3
        line = f"{name:20} {median:10.2f} {{:>8}} {fastest:11.2f} {{:>8}}"
        ratios = ("", "")
        if before:
            paired = statistics.median(mine / other for mine, other in zip(times, before, strict=True))
            ratios = (f"{paired - 1:+.2%}", f"{min(times) / min(before) - 1:+.2%}")
        print(line.format(*ratios))
        before = times


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
