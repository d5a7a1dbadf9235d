"""Instruction tuning of a small language model: what pruning, a coreset, a curriculum and their controls are worth.

    OMP_NUM_THREADS=1 python tests/benchmarks/causal_lm.py [--seeds 3] [--samples 2000] [--epochs 8]

`toy-instructions` with no method, and with every other one at the same saving of sample passes (the curriculum: of
compute). What is judged is the perplexity of the answers of the test split, and how many of them greedy decoding
gives to the letter. Rows are packed, so a sample costs what it is long: FLOPs are those of the rows that were
computed, as a fraction of those without a method, seed by seed; cost is the same in reference steps. Passes saved
are of a run's own budget, which is shorter for fewer epochs and lengths.
"""

from __future__ import annotations

import argparse
from typing import Any

from side_by_side import middle, provenance, ratios, side_by_side, spread

from raytrain_speedup.config import load_experiment

SAVED = 0.2
"""Of the sample passes, by every method."""

CORESET = 0.9
"""The part of the data that InfoBatch is left after a coreset, where both save."""


def variants(epochs: float) -> dict[str, dict[str, Any]]:
    """Overrides by name."""
    full: dict[str, Any] = {"pruning": {"method": "none"}, "train.epochs": epochs}
    shorter = full | {"train.epochs": epochs * (1 - SAVED)}
    within = {"method": "infobatch", "saving": 1 - (1 - SAVED) / CORESET}
    return {
        "none": full,
        "fewer epochs": shorter,
        "random": full | {"pruning": {"method": "random", "saving": SAVED}},
        "InfoBatch": full | {"pruning": {"method": "infobatch", "saving": SAVED}},
        "DQ": full | {"pruning": {"method": "dq", "fraction": 1 - SAVED}},
        "DQ + InfoBatch": full | {"pruning": {"method": "dq", "fraction": CORESET, "within": within}},
        "lengths": shorter | {"curriculum.method": "length"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=8.0)
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    keys = {"data.train_samples": asked.samples, "train.eval_every": 0}
    methods = variants(asked.epochs)
    results = side_by_side(load_experiment("toy-instructions", keys), methods, seeds)
    print(
        "\n| method | perplexity | exact answers | passes saved | FLOPs | cost |\n|---|--:|--:|--:|--:|--:|"
    )
    for name in methods:
        perplexity = spread([metrics["perplexity"] for metrics in results[name]], "{:.3f}")
        exact = spread([metrics["exact_match"] for metrics in results[name]], "{:.1f}")
        saved = sum(metrics["passes_saved"] for metrics in results[name]) / len(seeds)
        flops, cost = (middle(ratios(results, name, of, "none")) for of in ("train_flops", "reference_steps"))
        print(f"| {name} | {perplexity} | {exact} % | {saved:.1%} | {flops} | {cost} |")
    print(f"\n{asked.samples} instructions, {asked.epochs:g} epochs. {provenance(seeds)}")


if __name__ == "__main__":
    main()
