"""A student that never sees a street scene, on CamVid: FastDFKD, the noise control, and real images.

    python tests/benchmarks/camvid_dfkd.py [--seeds 3] [--teacher FILE] [--on-validation] [KEY=VALUE ...]

The teacher is the recipe `camvid`, trained once (or read from --teacher); `fastdfkd` is the recipe `camvid-dfkd`,
`noise` and `real` differ from it in nothing but the images: a seed decides the student. --on-validation reads the
validation split in the place of the test split; whatever was tuned was tuned so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import Metrics, control, data_folder, middle, provenance, side_by_side, spread

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher", type=Path, help="weights of the recipe camvid, instead of training them")
    parser.add_argument("--on-validation", action="store_true", help="judge by the validation split")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of camvid-dfkd to change")
    asked = parser.parse_args()
    data: dict[str, Any] = {
        f"data.{split}": str(data_folder() / f"camvid-{split}.parquet") for split in ("train", "val", "test")
    }
    if asked.on_validation:
        data["data.test"] = data["data.val"]
    with tempfile.TemporaryDirectory() as folder:
        teacher = asked.teacher or train_teacher(data, Path(folder))
        taught = {"teacher.train": None, "teacher.model.pretrained": str(teacher), "train.eval_every": 0}
        base = load_experiment("camvid-dfkd", data | taught).with_overrides(asked.overrides)
        variants = {"fastdfkd": {}, "noise": control(base, "noise"), "real": control(base, "real")}
        results = side_by_side(base, variants, range(asked.seeds))
    print(
        "\n| images | teacher's mIoU | student's mIoU | pixels right | agreement | synthesis s | training s |"
        "\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for name, metrics in results.items():
        print(row(name, metrics))
    steps = base.train.epochs * (base.distillation.student_steps if base.distillation else 0)
    judged = "validation" if asked.on_validation else "test"
    print(f"\n{steps:g} student steps; {judged} split. {provenance(range(asked.seeds))}")


def train_teacher(data: dict[str, Any], folder: Path) -> Path:
    """The recipe `camvid` for as long as in `camvid-dfkd`; the file of its weights."""
    reporter = LocalReporter(folder)
    metrics = run(
        load_experiment("camvid", data | {"train.eval_every": 0, "train.epochs": 40}), reporter
    ).to_dict()
    print(f"  teacher: mIoU {metrics['miou']:.2f} in {metrics['train_seconds']:.0f} s", flush=True)
    latest = reporter.latest()
    assert latest is not None
    return latest / "model.pt"


def row(name: str, runs: list[Metrics]) -> str:
    """One line of the table."""
    return "| {} | {:.2f} | {} | {} | {} | {} | {} |".format(
        name,
        runs[0]["teacher_miou"],
        spread([run["miou"] for run in runs]),
        spread([run["pixel_accuracy"] for run in runs]),
        spread([run["val_agreement"] for run in runs]),
        middle([run["synthesis_seconds"] for run in runs], "{:.0f}"),
        middle([run["train_seconds"] for run in runs], "{:.0f}"),
    )


if __name__ == "__main__":
    main()
