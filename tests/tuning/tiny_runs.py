"""A trial that reports what the engine reports and takes no time, for tests of what goes wrong around it.

As a script it is a driver to be killed:  python tiny_runs.py SWEEP.yaml TRACKING_URI [resume]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint
from raytrain_speedup.scaling.tune_trial import trial_reporter
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED

EPOCHS = 4


def tiny(config: dict[str, Any]) -> None:
    """Accuracy falls with the prune ratio, and so does the cost. Faults by ratio: see `FAULTS`.

    A checkpoint is a file that holds the number of epochs done.
    """
    reporter = trial_reporter(config)
    experiment = config["experiment"]
    ratio = experiment["pruning"].get("prune_ratio") or 0.0
    seed = experiment["train"]["seed"]
    accuracy = (
        90 + (seed % 3 / 10 if seed < SEARCH_SEED else 0.1) - (20 * (ratio - 0.5) if ratio > 0.5 else 0)
    )

    def metrics(epoch: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "progress": epoch / EPOCHS,
            "train_loss": 1 / epoch,
            "train_seconds": epoch * (1 - ratio / 2),
            "reference_steps": 100 * epoch * (1 - ratio / 2),
            "val_accuracy": accuracy * epoch / EPOCHS,
            "pid": os.getpid(),
        }

    latest = reporter.latest()
    done = int((latest / "rank-0.pt").read_text()) if latest is not None else 0
    for epoch in range(done + 1, EPOCHS + 1):
        time.sleep(experiment["train"]["lr"])
        FAULTS.get(ratio, lambda *_: None)(config, epoch)
        folder = reporter.new_folder()
        (folder / "rank-0.pt").write_text(str(epoch))
        reporter.report(metrics(epoch), Checkpoint(folder, {}))
        reporter.settle()
    final = {
        **({"accuracy": accuracy} if config["test"] else {}),
        "val_accuracy": float("nan") if ratio == 0.9 else accuracy,
        "passes_saved": ratio / 2,
        "train_flops": 1e9 * (1 - ratio / 2),
        "baseline_key": "tiny",
        "setup": "no batch",
        "hardware": "a desk",
        "reference_batch": 8.0,
        "wall_seconds": 1.0,
        "process": os.getpid(),
        "resumed_after": done,
        "seed": seed,
        "final": True,
    }
    reporter.report({**metrics(EPOCHS), **final})


def _raise(config: dict[str, Any], epoch: int) -> None:
    if epoch == 2:
        raise ArithmeticError("the loss is NaN in step 17")


def _die_once(config: dict[str, Any], epoch: int) -> None:
    mark = Path(config["storage"]) / f"{config['run_name']}.died"
    if epoch == 2 and not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        os._exit(1)


FAULTS = {0.1: _raise, 0.2: _die_once}

SPACE = """
name: tiny
experiment: digits
overrides: {{train.lr: {pause}, scaling.storage: {folder}/runs}}
trial: {{pruning.method: infobatch}}
search:
  pruning.prune_ratio: {{type: float, low: 0.0, high: 0.9}}
points_to_evaluate: {points}
trials: {trials}
seeds: [0, 1, 2]
confirm: {{winners: 1}}
concurrency: 2
objective: {objective}
{more}
"""


def space(
    folder: Path,
    ratios: list[float],
    *,
    pause: float = 1e-3,
    more: str = "",
    trials: int | None = None,
    objective: str = "pareto",
) -> Path:
    """A search-space file whose first trials have these prune ratios."""
    points = [{"pruning.prune_ratio": ratio} for ratio in ratios]
    path = folder / "tiny.yaml"
    path.write_text(
        SPACE.format(
            pause=pause,
            folder=folder,
            points=points,
            trials=trials or len(ratios),
            more=more,
            objective=objective,
        )
    )
    return path


if __name__ == "__main__":
    from raytrain_speedup.tuning.sweep import sweep

    try:
        sweep(
            sys.argv[1],
            tracking_uri=sys.argv[2],
            resume="resume" in sys.argv,
            out=Path(sys.argv[1]).parent,
            trainable=tiny,
        )
    except KeyboardInterrupt:
        sys.exit(130)
