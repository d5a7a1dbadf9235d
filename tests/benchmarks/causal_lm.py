"""Instruction tuning of a small language model: what pruning, a coreset, a curriculum and their controls are worth.

    OMP_NUM_THREADS=1 python tests/benchmarks/causal_lm.py [--seeds 3] [--samples 2000] [--epochs 8]

`toy-instructions` with no method, and with every other one at the same saving of sample passes (the curriculum: of
compute). What is judged is the perplexity of the answers of the test split, and how many of them greedy decoding
gives to the letter. Rows are packed, so a sample costs what it is long: FLOPs are those of the rows that were
computed, as a fraction of those without a method, seed by seed; cost is the same in reference steps.
"""

from __future__ import annotations

from typing import Any

from side_by_side import arguments, print_methods, provenance, side_by_side

from raytrain_speedup.config import load_experiment

SAVED = 0.2
"""Of the sample passes, by every method."""

CORESET = 0.9
"""The part of the data that InfoBatch is left after a coreset, where both save."""


def variants(epochs: float) -> dict[str, dict[str, Any]]:
    """Overrides by name."""
    full: dict[str, Any] = {"pruning": {"method": "none"}, "train.epochs": epochs}
    shorter = full | {"pruning": {"method": "epochs", "saving": SAVED}}
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
    asked = arguments(__doc__, samples=2000, epochs=8.0).parse_args()
    seeds = range(asked.seeds)
    keys = {"data.train_samples": asked.samples, "train.eval_every": 0}
    methods = variants(asked.epochs)
    results = side_by_side(load_experiment("toy-instructions", keys), methods, seeds)
    print_methods(
        results, {"perplexity": ("perplexity", "{:.3f}"), "exact answers, %": ("exact_match", "{:.1f}")}
    )
    print(f"\n{asked.samples} instructions, {asked.epochs:g} epochs. {provenance(seeds)}")


if __name__ == "__main__":
    main()
