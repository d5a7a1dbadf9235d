"""What a run of a sweep takes beside its own work, from the end of the run before it to its own end.

    speedup sweep search_spaces/quickstart.yaml        # where there is none yet
    python tests/benchmarks/trial_overhead.py [sqlite:///mlflow.db]

Read from MLflow's record of the newest sweep. A run's own work is `wall_seconds`: training, evaluation, its last
checkpoint. What is left is to be asked for, handed to a process, begun and ended in MLflow. The first run of each
process is left out: it waits for Ray and for torch. Where a process has nothing to do until another run has come
back, that is a wait: from its own last run's end to that of the other.
"""

from __future__ import annotations

import sys
from statistics import median

from mlflow import MlflowClient
from mlflow.entities import Run

from raytrain_speedup.tracking import store

PARENT = "mlflow.parentRunId"


def main(uri: str = "sqlite:///mlflow.db") -> None:
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [
        run
        for run in client.search_runs(experiments, max_results=5000)
        if PARENT in run.data.tags and "wall_seconds" in run.data.metrics and store.GROUP in run.data.tags
    ]
    newest = max(runs, key=lambda run: run.info.start_time).data.tags[PARENT]
    ours = sorted(
        (run for run in runs if run.data.tags[PARENT] == newest), key=lambda run: run.info.start_time
    )
    rows = list(overheads(ours))
    print("| run | its own work | waiting for another run | beside both |\n|---|--:|--:|--:|")
    for run, waited, beside in rows:
        own = run.data.metrics["wall_seconds"]
        print(f"| {run.info.run_name} | {own:.1f} s | {waited:.2f} s | {beside:.2f} s |")
    seconds = sorted(beside for _, _, beside in rows)
    waits = sum(waited > 0 for _, waited, _ in rows)
    print(
        f"\n{len(seconds)} runs: median {median(seconds):.2f} s, most {seconds[-1]:.2f} s; {waits} had to wait"
    )


def overheads(runs: list[Run]) -> list[tuple[Run, float, float]]:
    """Seconds that its process waited before a run, and those beside its own work, of runs that followed another
    one: each end is followed by one begin."""
    ends = sorted(run.info.end_time for run in runs)
    followed = list(ends)
    found = []
    for run in runs:
        before = [end for end in followed if end <= run.info.start_time]
        if not before:  # the first of its process
            continue
        followed.remove(before[-1])
        last = max(end for end in ends if end <= run.info.start_time)
        waited, taken = (last - before[-1]) / 1000, (run.info.end_time - last) / 1000
        found.append((run, waited, taken - run.data.metrics["wall_seconds"]))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
