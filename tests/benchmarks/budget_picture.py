"""The picture of results/budget-curves.md, from the logs beside it.

    python tests/benchmarks/budget_picture.py                    # results/budget-curves.svg
    python tests/benchmarks/budget_picture.py -o mine.svg --only digits

Above: accuracy, mean of the seeds, against the compute in epochs of a full run; the black line is all data, at the
budgets and at those of `fewer epochs`. A method above the line is worth its compute; a dotted one lacks a budget.
Below: the difference from fewer epochs at the same compute, with its interval of 90 %, paired by seed. `resize` is
left out: with images on the device it is the same run as EfficientTrain++.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import matplotlib
from budget_curves import BOTH, FEWER, RESULTS, Key, compared, recorded
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from side_by_side import Metrics

PANELS = {
    "digits": "digits, ResNet-8",
    "cifar10-5000": "CIFAR-10, 5,000 images, ResNet-8",
    "airbench": "CIFAR-10, 50,000 images, airbench (H100)",
}
SAVING = 0.3
STYLES = {
    "infobatch": ("InfoBatch", "#d1495b", "o"),
    "rs2": ("RS2", "#3d7ea6", "s"),
    "orderdp": ("OrderDP", "#66a182", "D"),
    "seta": ("SeTa", "#8d5fa8", "v"),
    "random": ("random", "#808080", "x"),
    "el2n": ("EL2N", "#c2a878", "<"),
    "forgetting": ("forgetting", "#a0795c", ">"),
    "dyn-unc": ("Dyn-Unc", "#5c4742", "^"),
    "efficienttrain++": ("EfficientTrain++", "#e39b00", "P"),
    BOTH: ("InfoBatch + EfficientTrain++", "#00a6a6", "*"),
}
"""Method: name, colour, marker."""


def compute(key: Key, metrics: Metrics, full: Metrics) -> float:
    """In epochs of a full run of the same budget, by the FLOPs."""
    return key[1] * metrics["train_flops"] / full["train_flops"]


def means(found: dict[Key, Metrics], method: str, budget: int) -> tuple[float, float] | None:
    """Compute and accuracy over the seeds; None where there are fewer than two."""
    saving = 0.0 if method == "none" else SAVING
    runs = {key: metrics for key, metrics in found.items() if key[:3] == (method, budget, saving)}
    full = [metrics for key, metrics in found.items() if key[:2] == ("none", budget)]
    if len(runs) < 2 or not full:
        return None
    spent = fmean(compute(key, metrics, full[0]) for key, metrics in runs.items())
    return spent, fmean(metrics["accuracy"] for metrics in runs.values())


def curves(axes: Axes, found: dict[Key, Metrics], budgets: list[int]) -> None:
    """The upper panel."""
    whole = [means(found, method, budget) for budget in budgets for method in ("none", FEWER)]
    points = sorted(point for point in whole if point is not None)
    axes.plot(*zip(*points, strict=True), color="black", lw=1.6, zorder=1, label="all data")
    for method, (name, colour, marker) in STYLES.items():
        points = [point for budget in budgets if (point := means(found, method, budget)) is not None]
        if points:
            line = "-" if len(points) == len(budgets) else ":"
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, ms=5, lw=0.9, label=name)
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("compute, in epochs of all data")


def differences(axes: Axes, found: dict[Key, Metrics], budgets: list[int]) -> None:
    """The lower panel."""
    axes.axhline(0, color="black", lw=1.6, zorder=1)
    seeds = sorted({key[3] for key in found})
    for number, (method, (_, colour, marker)) in enumerate(STYLES.items()):
        for place, budget in enumerate(budgets):
            estimate = compared(found, method, budget, SAVING, seeds)
            if estimate is None:
                continue
            middle = float(estimate.difference)
            low, high = (float(bound) for bound in estimate.bounds(0.05, 0.05))
            x = place + (number - (len(STYLES) - 1) / 2) * 0.075
            axes.plot([x, x], [low, high], color=colour, lw=1)
            axes.plot(x, middle, marker=marker, color=colour, ms=5)
    axes.set_xticks(range(len(budgets)), [f"{budget} epochs" for budget in budgets])
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xlabel("of which 30 % are saved")
    axes.tick_params(axis="x", length=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=RESULTS / "budget-curves.svg")
    parser.add_argument("--only", nargs="+", choices=PANELS, default=list(PANELS), metavar="LOG")
    asked = parser.parse_args()
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "budget", "font.size": 9}
    figure = Figure(figsize=(5.2 * len(asked.only), 7.2), layout="constrained")
    panels = figure.subplots(2, len(asked.only), squeeze=False)
    for column, name in enumerate(asked.only):
        found = recorded(RESULTS / f"budget-curves-{name}.jsonl")
        budgets = sorted({key[1] for key in found})
        curves(panels[0, column], found, budgets)
        differences(panels[1, column], found, budgets)
        panels[0, column].set_title(PANELS[name])
        for axes in panels[:, column]:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", lw=0.3)
    panels[0, 0].set_ylabel("accuracy, %")
    panels[1, 0].set_ylabel("accuracy - that of fewer epochs, points")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(asked.out, metadata={"Date": None}, facecolor="white")
    print(asked.out)


if __name__ == "__main__":
    main()
