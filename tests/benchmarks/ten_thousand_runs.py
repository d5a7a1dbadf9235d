"""How long the leaderboard and a report take over ten thousand runs.

    python tests/benchmarks/ten_thousand_runs.py [runs] [runs of a sweep]

Runs of sweeps as the quickstart leaves them (baselines, trials, winners over five seeds; 40 final metrics and 30
epochs each) are written straight into the tables of MLflow's SQLite file. Then each part is timed: reading,
comparing, drawing, and the same runs read by MLflow's own search for comparison (every tenth sweep, scaled up).
"""

from __future__ import annotations

import gc
import io
import json
import random
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console

from raytrain_speedup.engine.final_metrics import WORDS
from raytrain_speedup.engine.statistics.verdict import plan_for
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.leaderboard import rows
from raytrain_speedup.tracking.mlflow_tracker import MlflowTracker
from raytrain_speedup.tracking.report.content import gather
from raytrain_speedup.tracking.report.page import html_page
from raytrain_speedup.tracking.table import show

EPOCHS, MORE_METRICS, WINNERS, SEEDS = 30, 30, 2, 5
MILLISECONDS = 1000


def fill(tracker: MlflowTracker, count: int, per_sweep: int) -> None:
    """Write `count` runs, `per_sweep` in a sweep, ten sweeps in an experiment."""
    draw = random.Random(0)
    sweeps = -(-count // per_sweep)
    experiments = [tracker._experiment_id(f"experiment-{number}") for number in range(-(-sweeps // 10))]
    database = sqlite3.connect(tracker.uri.removeprefix("sqlite:///"))
    with closing(database), database:
        for sweep in range(sweeps):
            experiment = experiments[sweep // 10]
            parent = _insert(database, experiment, "sweep", {store.SWEEP: "key"}, {}, None)
            for number in range(min(per_sweep, count - sweep * per_sweep)):
                _insert(database, experiment, *_run(number, draw), parent)


def _run(number: int, draw: random.Random) -> tuple[str, dict[str, str], dict[str, float]]:
    """Name, tags and metrics of one run of a sweep: baselines first, then winners, then trials."""
    seed, ratio = number % SEEDS, 0.0
    if number < SEEDS:
        role, group = "baseline", "baseline"
    elif number < SEEDS * (1 + WINNERS):
        role, group = "winner", f"winner-{number // SEEDS}"
        ratio = 0.3 + 0.1 * (number // SEEDS)
    else:
        role, group, seed, ratio = "trial", f"trial-{number}", 1_000_003, draw.random()
    accuracy = 97 + draw.gauss(0, 0.2)
    metrics = {f"metric_{extra}": draw.random() for extra in range(MORE_METRICS)}
    metrics |= {
        "val_accuracy": accuracy,
        "progress": 1.0,
        "passes_saved": ratio / 2,
        "train_seconds": 10 - 5 * ratio,
        "train_flops": 1e12 * (1 - ratio / 2),
        "reference_steps": 1000 * (1 - ratio / 2),
        "reference_batch": 64.0,
        "epochs": float(EPOCHS),
        "test_samples": 10_000.0,
    } | ({} if role == "trial" else {"accuracy": accuracy})
    plan = plan_for(0.5, max_seeds=SEEDS, winners=WINNERS, pairing="paired")
    tags = {
        store.ROLE: role,
        store.STATE: "finished",
        store.SEED: str(seed),
        store.METHOD: "none" if role == "baseline" else "infobatch",
        store.SETTINGS: f"prune_ratio={ratio:.3g}",
        store.GROUP: group,
        store.PARAMS: json.dumps({"pruning.prune_ratio": ratio}),
        store.MARGIN: "0.5",
        **{f"speedup.{key}": "a word" for key in WORDS},
        "speedup.metric": "accuracy",
    } | ({store.PLAN: json.dumps(plan.to_dict())} if role == "winner" else {})
    return f"{role}-{number}", tags, metrics


def _insert(
    database: sqlite3.Connection,
    experiment: str,
    name: str,
    tags: dict[str, str],
    metrics: dict[str, float],
    parent: str | None,
) -> str:
    run_id, now = uuid.uuid4().hex, int(time.time() * MILLISECONDS)
    database.execute(
        "INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, lifecycle_stage, "
        "artifact_uri, user_id, source_name, source_version, entry_point_name) "
        "VALUES (?, ?, ?, 'FINISHED', ?, 'active', '', '', '', '', '')",
        (run_id, name, int(experiment), now),
    )
    own = {"mlflow.runName": name} | ({} if parent is None else {"mlflow.parentRunId": parent})
    pairs = [(run_id, key, value) for key, value in {**tags, **own}.items()]
    database.executemany("INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", pairs)
    curves = {f"epoch/metric_{number}": 0.5 for number in range(MORE_METRICS)} if metrics else {}
    latest = [(run_id, key, value, now, 0, 0) for key, value in {**metrics, **curves}.items()]
    columns = "(run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
    database.executemany(f"INSERT INTO latest_metrics {columns}", latest)
    return run_id


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter(), time.process_time()
    yield
    _say(what, start)


def _say(what: str, start: tuple[float, float]) -> None:
    wall, work = time.perf_counter() - start[0], time.process_time() - start[1]
    print(f"{what:34} {wall:8.2f} s, {work:6.2f} of a core", flush=True)


def main(count: int = 10_000, per_sweep: int = 100) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with timed("making MLflow's tables"):
            tracker = open_tracker(f"sqlite:///{folder}/mlflow.db")
        assert isinstance(tracker, MlflowTracker)
        with timed(f"writing {count} runs"):
            fill(tracker, count, per_sweep)
        megabytes = Path(folder, "mlflow.db").stat().st_size / 1e6
        print(f"{megabytes:.0f} MB")
        gc.collect()
        gc.freeze()  # a command finds no heap of a hundred thousand things to look through
        start = time.perf_counter(), time.process_time()
        with timed("reading them (mlflow_sql)"):
            entries = tracker.runs(tag=store.GROUP, wanted=store.COMPARED)
        with timed("records"):
            records = [store.record_of(entry) for entry in entries]
        with timed("rows"):
            found = rows(records)
        with timed("the table, 160 columns"):
            show(found, Console(file=io.StringIO(), width=160))
        _say("the leaderboard", start)
        with timed("the report of all of them"):
            page = html_page(gather(records, target="all", tracker=tracker))
        print(f"{len(page) / 1e6:.2f} MB of HTML")
        with timed("a tenth of them by search_runs"):
            tenth = [tracker._search(name, store.GROUP, None, None) for name in tracker.experiments()[::10]]
        print(f"{len(found)} rows of {len(records)} runs; search_runs read {sum(map(len, tenth))}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
