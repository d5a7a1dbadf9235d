"""Does training time fall as the FLOPs do? EfficientTrain++ against full resolution at equal samples, on a CPU.

    python tests/benchmarks/curriculum_speedup.py [--rows 2000] [--epochs 2]

CIFAR-10 images enlarged to 64 pixels; a small ConvNet and a small ViT. For each, every stage is timed by the
preflight (samples per second against the full-size stage's), then the whole run is made at equal samples with
and without the curriculum. The speedup is to reach at least .8 of the FLOP ratio.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import provenance, side_by_side, small_cifar10

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.cost.measure import training_flops
from raytrain_speedup.engine.preflight import preflight
from raytrain_speedup.models import build_model
from raytrain_speedup.tasks.classification import Classification

MODELS: dict[str, dict[str, Any]] = {
    "ConvNet (ResNet-8)": {"model.name": "resnet8"},
    "ViT (4 blocks of 96)": {
        "model.name": "timm/vit_tiny_patch16_224",
        "model.options": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
        "train.optimizer": "adamw",
        "train.lr": 0.001,
    },
}
CURRICULUM = {"curriculum.method": "efficienttrain++", "curriculum.family": "swin"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    asked = parser.parse_args()
    size = {"data.image_size": 64, "train.epochs": asked.epochs, "train.threads": asked.threads}
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in MODELS.items():
            base = small_cifar10(Path(folder), asked.rows, {**size, **overrides})
            stages(name, base, asked.steps)
            whole_run(name, base)
    print(f"\n{asked.rows} images, {asked.epochs:g} epochs of compute, batch 128. {provenance([0])}")


def stages(name: str, base: Experiment, steps: int) -> None:
    """Samples per second of every size, against the FLOPs it should save."""
    checks = {check.size: check for check in preflight(base.with_overrides(CURRICULUM), steps=steps).checks}
    full = checks[max(checks)]
    model = build_model(base.model, num_classes=10, image_size=full.size)
    most = training_flops(model, Classification(), (3, full.size, full.size))
    print(
        f"\n{name}\n\n| size | samples/s | times full's | FLOP ratio | fraction reached |\n|--:|--:|--:|--:|--:|"
    )
    for size, check in sorted(checks.items()):
        faster = check.device_rate / full.device_rate
        fewer = most / training_flops(model, Classification(), (3, size, size))
        print(f"| {size} | {check.device_rate:,.0f} | {faster:.2f} | {fewer:.2f} | {faster / fewer:.2f} |")


def whole_run(name: str, base: Experiment) -> None:
    """The run with its curriculum, and as many samples at full size."""
    curriculum = base.with_overrides(CURRICULUM)
    plan = curriculum.curriculum.stages(
        64, stride=8 if "vit" in base.model.name else 4, model=base.model.name
    )
    passes = base.train.epochs * sum(
        (stage.ends_at - before) / stage.cost
        for stage, before in zip(plan, [0.0, *(stage.ends_at for stage in plan)], strict=False)
    )
    results = side_by_side(base, {"full size": {"train.epochs": passes}, "efficienttrain++": CURRICULUM}, [0])
    (full,), (staged,) = results["full size"], results["efficienttrain++"]
    flops = full["train_flops"] / staged["train_flops"]
    speedup = full["train_seconds"] / staged["train_seconds"]
    print(
        f"\n{name}, whole run: {staged['samples_shown']:,} samples against {full['samples_shown']:,}, "
        f"speedup {speedup:.2f}, FLOP ratio {flops:.2f}, fraction reached {speedup / flops:.2f}"
    )


if __name__ == "__main__":
    main()
