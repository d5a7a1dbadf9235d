"""A sweep whose runs are written down without having run: baseline, trials, a winner, a control, what failed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_speedup.engine.cost.measure import PHASES
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tracking.tracker import Tracker
from raytrain_speedup.tuning.confirmation import confirmation_plan
from raytrain_speedup.tuning.parent import new_parent, write_sweep
from raytrain_speedup.tuning.space import Sweep, load_sweep
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED

RATIOS = (0.2, 0.3, 0.5, 0.6, 0.8)
ANNEAL_FROM = (0.52, 0.8, 0.55, 0.7, 0.6)
NASTY = "<script>alert('x')</script> & \"quoted\""

SPACE = """
name: written
about: {about}
experiment: digits
trial: {{pruning.method: infobatch}}
search:
  pruning.prune_ratio: {{type: float, low: 0.1, high: 0.9}}
  pruning.anneal_from: {{type: float, low: 0.5, high: 0.9}}
trials: 7
confirm: {{winners: 1, max_seeds: 5}}
margin: 1.0
controls: {{random: {{pruning.method: random, pruning.saving: 0.3}}}}
"""


@dataclass(frozen=True)
class Written:
    """The sweep, where it is, and what was written."""

    sweep: Sweep
    tracker: Tracker
    parent: str
    runs: dict[str, str]
    """Name: run id."""


def final(quality: float, seconds: float, seed: int, *, test: bool) -> dict[str, Any]:
    """Metrics of a run that cost so many training seconds, and a second beside."""
    tested = {"accuracy": quality} if test else {}
    return {
        **tested,
        "val_accuracy": quality,
        "metric": "accuracy",
        "direction": "max",
        "train_key": "t",
        "train_seconds": seconds,
        "wall_seconds": seconds + 1.0,
        "train_flops": 1e9 * seconds,
        "reference_steps": 100 * seconds,
        "reference_batch": 8.0,
        "passes_saved": 1 - seconds / 10,
        "progress": 1.0,
        "epochs": 10,
        "seed": seed,
        "hardware": "a desk",
        "setup": "batch 64",
        "baseline_key": "k",
        "test_samples": 10_000,
        "val_samples": 1000,
    }


def write(uri: str, folder: Path) -> Written:
    """Winner at ratio .5: twice as fast and .1 points below; trials lose ten points for each ratio above .5."""
    file = folder / "written.yaml"
    file.write_text(SPACE.format(about=json.dumps(NASTY)))
    sweep, tracker = load_sweep(file), open_tracker(uri)
    parent = new_parent(tracker, sweep)
    write_sweep(tracker, parent, sweep)
    runs: dict[str, str] = {}

    def begin(name: str, role: str, params: dict[str, Any], seed: int, plan: Any = None) -> RunLog:
        settings = params if role in ("random", "baseline") else {**sweep.settings.trial, **params}
        experiment = sweep.experiment(settings, seed)
        log = RunLog.start(
            tracker, experiment, name=name, into="written", role=role, parent=parent, params=params,
            margin=1.0, plan=plan,
        )  # fmt: skip
        runs[name] = log.run_id
        return log

    def epoch(log: RunLog, number: int, quality: float, seconds: float) -> None:
        spent = {f"{phase}_seconds": 0.0 for phase in PHASES} | {
            "train_seconds": seconds,
            "eval_seconds": 0.5,
        }
        log.epoch({"epoch": number, "val_accuracy": quality, "train_flops": 1e9 * seconds, **spent})

    def finish(log: RunLog, quality: float, seconds: float, seed: int, *, test: bool) -> None:
        epoch(log, 1, quality - 9, seconds / 2)
        epoch(log, 2, quality, seconds)
        log.finish(FinalMetrics.from_dict(final(quality, seconds, seed, test=test)))

    baseline = sweep.settings.baseline
    for seed in (SEARCH_SEED, SEARCH_SEED + 1, 0, 1, 2):
        run = begin(f"baseline-seed{seed}", "baseline", baseline, seed)
        finish(run, 97 + 0.1 * (seed % 3), 10.0, seed, test=True)
    for number, (ratio, anneal_from) in enumerate(zip(RATIOS, ANNEAL_FROM, strict=True), 1):
        params = {"pruning.prune_ratio": ratio, "pruning.anneal_from": anneal_from}
        quality = 97 - 10 * max(0.0, ratio - 0.5)
        finish(begin(f"trial-{number:02d}", "trial", params, SEARCH_SEED), quality, 10 * (1 - ratio), SEARCH_SEED,
               test=False)  # fmt: skip
    params = {"pruning.prune_ratio": 0.85, "pruning.anneal_from": 0.6}
    stopped = begin("trial-06", "trial", params, SEARCH_SEED)
    epoch(stopped, 1, 60.0, 2.0)
    stopped.end("stopped", "behind the others at 25%")
    begin("trial-07", "trial", params | {"pruning.anneal_from": 0.7}, SEARCH_SEED).end("failed", NASTY)
    plan = confirmation_plan(sweep.settings, 1)
    winner = {"pruning.prune_ratio": 0.5, "pruning.anneal_from": 0.55}
    for seed in range(3):
        quality = 96.9 + 0.1 * seed
        finish(begin(f"trial-03-seed{seed}", "winner", winner, seed, plan), quality, 5.0, seed, test=True)
        run = begin(f"random-seed{seed}", "random", sweep.settings.controls["random"], seed)
        finish(run, 93.0 + 0.2 * seed, 7.0, seed, test=True)
    tracker.end(parent, "finished")
    return Written(sweep, tracker, parent, runs)
