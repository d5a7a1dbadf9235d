"""Diffusion on digits: what pruning and its controls cost, how good the images are, and what a score is worth.

    OMP_NUM_THREADS=1 python tests/benchmarks/diffusion.py [--seeds 3] [--epochs 20] [--only scores]

The first table: `digits-diffusion` without a method, its controls at the same saving of compute, and InfoBatch by
three scores: the last loss, the same within bins of the time step, and that averaged over visits. What is judged is
the Fréchet distance on the test split, smaller is better; cost is in reference steps, as a fraction of that without
a method, seed by seed.

The second table: how consistently each score orders the training samples. The network is that of a run without a
method; two estimates of every score are made from time steps and noise that have nothing in common, and Spearman's
rank correlation between the two is told. Averages are over 10 visits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from side_by_side import middle, provenance, ratios, side_by_side, spread
from torch import nn

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.batch import Batch, Step, draw_keys
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.pruning import InfoBatch, InfoBatchSettings
from raytrain_speedup.models import build_model

SAVING = 0.25
VISITS = 10
SCORES: dict[str, dict[str, Any]] = {
    "last loss": {"pruning.score_strata": False, "pruning.score_momentum": None},
    "within time steps": {"pruning.score_strata": True, "pruning.score_momentum": None},
    "averaged": {"pruning.score_strata": False, "pruning.score_momentum": 0.8},
    "within time steps, averaged": {"pruning.score_strata": True, "pruning.score_momentum": 0.8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=("costs", "scores"), help="one of the two tables")
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    base = load_experiment("digits-diffusion", {"train.epochs": asked.epochs, "train.eval_every": 0})
    for name, table in (("scores", print_consistency), ("costs", print_costs)):
        if asked.only in (None, name):
            table(base, seeds)
    print(f"\n1150 images, {asked.epochs} epochs. {provenance(seeds)}")


def print_costs(base: Experiment, seeds: range) -> None:
    """The first table."""
    infobatch = {"pruning": {"method": "infobatch", "saving": SAVING}}
    variants: dict[str, Mapping[str, Any]] = {
        "none": {"pruning": {"method": "none"}},
        "fewer epochs": {"pruning": {"method": "epochs", "saving": SAVING}},
        "random": {"pruning": {"method": "random", "saving": SAVING}},
        **{f"InfoBatch, {name}": infobatch | keys for name, keys in SCORES.items() if name != "averaged"},
    }
    results = side_by_side(base, variants, seeds)
    print("\n| method | Fréchet distance | larger than none's by | denoising error | passes saved | cost |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in variants:
        distance = spread([metrics["frechet_distance"] for metrics in results[name]], "{:.3f}")
        pairs = zip(results[name], results["none"], strict=True)
        worse = spread([a["frechet_distance"] - b["frechet_distance"] for a, b in pairs], "{:.3f}")
        error = spread([metrics["denoising_error"] for metrics in results[name]], "{:.4f}")
        saved = sum(metrics["passes_saved"] for metrics in results[name]) / len(seeds)
        cost = middle(ratios(results, name, "reference_steps", "none"))
        print(f"| {name} | {distance} | {worse} | {error} | {saved:.1%} | {cost} |")


def print_consistency(base: Experiment, seeds: range) -> None:
    """The second table."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    for seed in seeds:
        plain = base.with_overrides({"pruning": {"method": "none"}, "train.seed": seed})
        network, batches = trained_network(plain)
        for name, keys in SCORES.items():
            experiment = base.with_overrides({**keys, "train.seed": seed})
            epochs = count()
            one, other = (estimate(experiment, network, batches, epochs) for _ in range(2))
            found[name].append(float(spearmanr(one, other).statistic))
    print("\n| score | rank correlation of two independent estimates |\n|---|--:|")
    for name, values in found.items():
        print(f"| {name} | {spread(values)} |", flush=True)


def trained_network(experiment: Experiment) -> tuple[nn.Module, list[Batch]]:
    """The network of a run, and all training samples without augmentation."""
    splits = open_data(experiment.data, seed=experiment.train.seed)
    network = build_model(
        experiment.model,
        num_classes=splits.num_classes,
        in_channels=splits.channels,
        image_size=splits.image_size,
        dense=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        reporter = LocalReporter(Path(folder))
        run(experiment, reporter)
        latest = reporter.latest()
        assert latest is not None
        network.load_state_dict(torch.load(latest / "model.pt", weights_only=True))
    loader = build_loader(splits, experiment.data, device=torch.device("cpu"), seed=experiment.train.seed)
    return network.eval(), list(loader.eval_batches("train", batch_size=experiment.train.batch_size))


@torch.inference_mode()
def estimate(experiment: Experiment, network: nn.Module, batches: list[Batch], epochs: Any) -> torch.Tensor:
    """The score of every training sample (N,), as InfoBatch would judge by it; `epochs` counts those used."""
    task, how = experiment.task.build(), experiment.pruning
    assert isinstance(how, InfoBatchSettings)
    momentum, strata = how.score_momentum, how.score_strata
    visits = 1 if momentum is None else VISITS
    samples = sum(len(batch["index"]) for batch in batches)
    pruner = InfoBatch(samples, epochs=visits + 1, score_momentum=momentum, score_strata=strata)
    for visit, epoch in enumerate(islice(epochs, visits)):
        pruner.plan(visit)
        for batch in batches:
            index = batch["index"]
            step = Step(0, index, batch["weight"], len(index), 0.0, FULL)
            draws = draw_keys(index, step, seed=experiment.train.seed, epoch=1000 + epoch)
            losses = task.losses(network, batch | {"draws": draws})
            if losses.strata is not None:
                pruner.stratify(index, losses.strata)
            pruner.observe(index, losses.scores)
    pruner.plan(visits)
    return torch.from_numpy(pruner._usable_scores()[0])


if __name__ == "__main__":
    main()
