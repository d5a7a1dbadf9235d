"""A student that never sees an image, on the digits: FastDFKD, the noise control, and a student with the data.

    python tests/benchmarks/digits_dfkd.py [--seeds 3] [KEY=VALUE ...]

`fastdfkd` is the recipe `digits-dfkd`, teacher included; `noise` is the same in everything but the images;
`scratch` is the student trained on the data as the recipe `digits` trains it, unpruned. A seed decides
teacher and student. Whatever is tuned is tuned on the validation split: the test accuracies are for the table.
"""

from __future__ import annotations

import argparse
from statistics import mean

from side_by_side import Metrics, control, middle, provenance, side_by_side, spread

from raytrain_speedup.config import load_experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe to change")
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    base = load_experiment("digits-dfkd", asked.overrides)
    variants = {"fastdfkd": {}, "noise": control(base, "noise")}
    results = side_by_side(base, variants, seeds, ("train.seed", "teacher.train.seed"))
    scratch = load_experiment(
        "digits",
        {
            "pruning.method": "none",
            "model": base.model.model_dump(),
            "data": base.data.model_dump(),
            "train.threads": base.train.threads,
        },
    )
    results |= side_by_side(scratch, {"scratch": {}}, seeds)
    print(
        "\n| student | teacher's accuracy | student's accuracy | difference | agreement | synthesis s "
        "| training s | end to end s |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, metrics in results.items():
        print(row(name, metrics))
    teacher = base.teacher.model.name if base.teacher is not None else ""
    losses = [run["teacher_accuracy"] - run["accuracy"] for run in results["fastdfkd"]]
    print(f"\nwithout data, the student loses {mean(losses):.2f} points of its teacher's test accuracy")
    print(f"{teacher} to {base.model.name}, {base.train.epochs:g} calls. {provenance(seeds)}")


def row(name: str, runs: list[Metrics]) -> str:
    """One line of the table; a student with the data has no teacher."""
    taught = "teacher_accuracy" in runs[0]
    return "| {} | {} | {} | {} | {} | {} | {} | {} |".format(
        name,
        spread([run["teacher_accuracy"] for run in runs]) if taught else "",
        spread([run["accuracy"] for run in runs]),
        spread([run["accuracy"] - run["teacher_accuracy"] for run in runs], "{:+.2f}") if taught else "",
        spread([run["val_agreement"] for run in runs]) if taught else "",
        middle([run["synthesis_seconds"] for run in runs], "{:.1f}") if taught else "",
        middle([run["train_seconds"] for run in runs], "{:.1f}"),
        middle([run["wall_seconds"] for run in runs], "{:.1f}"),
    )


if __name__ == "__main__":
    main()
