"""How many trials, and how much compute, until the cheapest lossless setting is found? Known surfaces, with noise.

    python tests/benchmarks/search.py                     # all tables, about ten minutes of one core
    python tests/benchmarks/search.py --seeds 3 --surfaces flat --ways frontier random --baselines 2

Whole sweeps, driven through `SweepPlan` as Ray Tune drives it, but with a formula in place of a training: three
parameters, a quality with noise of .3 points at every report (so of the baseline too, whose level the search has
to estimate), a margin of .5. The optimum is that of a fine grid. A sweep is said to have come within 5 % with the
first trial that is truly lossless, ran to its end and costs at most 5 % more than the optimum.

Columns: median and worst number of trials until then (-: not within the trials there are); how many of the sweeps
were there within 40; the compute of the trials and of the confirmation, in runs of the baseline; sweeps that
ended with a setting proven lossless, and with one that is truly lossy; what the proven ones cost, against the
optimum, and what is delivered: the baseline where nothing is proven.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import optuna
import yaml

from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.space import Sweep, load_sweep

NOISE, MARGIN, LEVEL, TRIALS = 0.3, 0.5, 90.0, 60
REPORTS = 10
WITHIN = 1.05
KEYS = {
    "pruning.prune_ratio": (0.0, 0.9),
    "pruning.anneal_from": (0.5, 0.98),
    "curriculum.ratio": (0.3, 1.0),
}
LOW, HIGH = np.array(list(KEYS.values())).T
NO_END: dict[str, Any] = {"budget": {}}
NO_STOP: dict[str, Any] = {"scheduler": {"method": "none"}, **NO_END}
WAYS: dict[str, dict[str, Any]] = {
    "frontier": {},
    "frontier, all trials": NO_END,
    "frontier, not stopped": NO_STOP,
    "tpe, constrained": {"sampler": "tpe", **NO_STOP},
    "tpe, constrained, stopped": {"sampler": "tpe"},
    "gp, constrained": {"sampler": "gp", **NO_STOP},
    "tpe, two objectives": {"objective": "pareto", **NO_END},
    "random": {"sampler": "random", **NO_STOP},
}

Loss = Callable[[np.ndarray], np.ndarray]


def savings(x_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What pruning and what the small images save of the cost."""
    ratio, anneal, bandwidth = np.moveaxis(x_N3, -1, 0)
    return 0.6 * ratio * anneal, 0.7 * (1 - bandwidth**2)


def cost(x_N3: np.ndarray) -> np.ndarray:
    pruned, shrunk = savings(x_N3)
    return (1 - pruned) * (1 - shrunk)


def smooth(x_N3: np.ndarray) -> np.ndarray:
    """Points that are lost: from the first saving on, and more together than apart."""
    pruned, shrunk = savings(x_N3)
    return 4 * pruned**2 + 2.5 * shrunk**2 + 4 * pruned * shrunk + 10 * _beyond(x_N3[..., 1], 0.875) ** 2


def flat(x_N3: np.ndarray) -> np.ndarray:
    """Nothing is lost, up to a point."""
    pruned, shrunk = savings(x_N3)
    alone = 20 * _beyond(pruned, 0.2) ** 2 + 12 * _beyond(shrunk, 0.3) ** 2
    return alone + 6 * _beyond(pruned + shrunk, 0.6) ** 2 + 20 * _beyond(x_N3[..., 1], 0.875) ** 2


def cliff(x_N3: np.ndarray) -> np.ndarray:
    """A little is lost, and then much."""
    pruned, shrunk = savings(x_N3)
    steep = 60 * _beyond(pruned, 0.25) ** 2 + 60 * _beyond(shrunk, 0.35) ** 2
    return 0.3 * (pruned + shrunk) + steep + 30 * _beyond(x_N3[..., 1], 0.9) ** 2


SURFACES: dict[str, Loss] = {"smooth": smooth, "flat": flat, "cliff": cliff}


def _beyond(value: np.ndarray, start: float) -> np.ndarray:
    return np.maximum(value - start, 0.0)


def optimum(loss: Loss, steps: int = 121) -> float:
    """The smallest cost of what loses no more than the margin."""
    axes = [np.linspace(low, high, steps) for low, high in KEYS.values()]
    x_N3 = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return float(cost(x_N3)[loss(x_N3) <= MARGIN].min())


@dataclass
class Found:
    """What one sweep found.

    Attributes:
        first: number of the first trial within 5 %; None without one.
        compute: of the trials, in runs of the baseline.
        confirming: that of the confirmation, its baselines included.
        proven: cost and loss of the cheapest setting that was proven lossless; None without one.
    """

    first: int | None
    compute: float
    confirming: float
    proven: tuple[float, float] | None


def sweep_of(**changes: Any) -> Sweep:
    """The search-space file."""
    settings = {
        "name": "search",
        "experiment": "digits",
        "trial": {"pruning.method": "infobatch", "curriculum.method": "simplex"},
        "search": {
            key: {"type": "float", "low": float(low), "high": high} for key, (low, high) in KEYS.items()
        },
        "trials": TRIALS,
        "margin": MARGIN,
        "seeds": [0],
        **changes,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.yaml"
        file.write_text(yaml.safe_dump(settings))
        return load_sweep(file)


def point_of(params: Mapping[str, Any]) -> np.ndarray:
    """A trial's parameters; the baseline has none."""
    return np.array([params[key] for key in KEYS])


def simulate(loss: Loss, seed: int, *, confirm: int = 2, **changes: Any) -> Found:
    """A whole sweep, one run at a time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random, best = np.random.default_rng(seed), optimum(loss)
    plan = SweepPlan(sweep_of(seed=seed, confirm={"winners": confirm}, **changes))
    first, compute, confirming = None, 0.0, 0.0
    proven: dict[str, tuple[float, float]] = {}
    while isinstance(config := plan.suggest("only"), dict):
        params, is_trial = config["params"], config["role"] == "trial"
        is_method = set(params) == set(KEYS)
        lost, spent = (
            float(f(point_of(params))) if is_method else f0 for f, f0 in ((loss, 0.0), (cost, 1.0))
        )
        progress = train(plan, config, lost, spent, random)
        if is_trial:
            compute += spent * progress
            number = int(config["run_name"].rpartition("-")[2])
            if first is None and progress == 1 and lost <= MARGIN and spent <= WITHIN * best:
                first = number
            continue
        confirming += spent if plan.confirmation is not None else 0.0
        if is_method:
            proven[config["run_name"].rpartition("-seed")[0]] = (spent, lost)
    looks = plan.confirmation.looks if plan.confirmation is not None else {}
    lossless = [proven[name] for name, look in looks.items() if look.status == "lossless"]
    return Found(first, compute, confirming, min(lossless, default=None))


def train(
    plan: SweepPlan, config: Mapping[str, Any], lost: float, spent: float, random: np.random.Generator
) -> float:
    """A run as the scheduler sees it; gives the progress that it reached."""
    name, role, scheduler = config["run_name"], config["role"], plan.sweep.settings.scheduler
    for report in range(1, REPORTS + 1):
        progress = report / REPORTS
        quality = LEVEL - lost - (12 + 2 * lost) * (1 - progress) ** 2 + NOISE * random.standard_normal()
        metrics = {"progress": progress, "val_accuracy": quality, "train_flops": spent * progress}
        plan.hear("only", metrics)
        judged = scheduler.method == "bound" and role == "trial" and scheduler.grace <= progress < 1
        if judged and plan.monitor.is_superfluous(name, metrics, chance=scheduler.chance):
            plan.on_trial_complete("only", metrics)
            return progress
    seed = config["experiment"]["train"]["seed"]
    final = {"final": True, "seed": seed, "accuracy": quality, "passes_saved": 0.0, "wall_seconds": 1.0}
    plan.on_trial_complete("only", metrics | final)
    return 1.0


def table(surface: str, ways: list[str], seeds: int, baselines: int) -> None:
    """A line per way to search."""
    loss = SURFACES[surface]
    best = optimum(loss)
    print(f"\n{surface}: the optimum costs {best:.3f} of the baseline\n", flush=True)
    print(
        "| way | trials until within 5 % | worst | within 40 | compute | to confirm | proven | truly lossy "
        "| cost | delivered |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for way in ways:
        began = time.process_time()
        found = [simulate(loss, seed, baselines=baselines, **WAYS[way]) for seed in range(seeds)]
        firsts = sorted(one.first if one.first is not None else 10**6 for one in found)
        compute = fmean(one.compute for one in found)
        proven = [one.proven for one in found if one.proven is not None]
        cells = [
            way,
            _trials(median(firsts)),
            _trials(firsts[-1]),
            f"{sum(first <= 40 for first in firsts)} of {seeds}",
            f"{compute:.1f}",
            f"{fmean(one.confirming for one in found):.1f}",
            f"{len(proven)} of {seeds}",
            f"{sum(lost > MARGIN for _, lost in proven)} of {seeds}",
            f"{fmean(spent for spent, _ in proven) / best:.2f}" if proven else "-",
            f"{fmean(one.proven[0] if one.proven else 1.0 for one in found) / best:.2f}",
        ]
        print(f"| {' | '.join(cells)} |   {time.process_time() - began:.0f} s", flush=True)


def _trials(number: float) -> str:
    return f"{number:g}" if number < 10**5 else "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--surfaces", nargs="*", default=list(SURFACES))
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--baselines", type=int, default=TRIALS // 10, help="of the search")
    args = parser.parse_args()
    for surface in args.surfaces:
        table(surface, args.ways, args.seeds, args.baselines)
