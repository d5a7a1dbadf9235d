"""Faults of runs of two workers, each on a node of its own of one machine, beside the run that nothing happens to.

A process that holds the nodes and is asked for one fault after the other: a line of its standard input is the name
of a function below, with its arguments, and the answer is a line of JSON. (`test_faults_on_nodes.py` asks.)
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from full_disk import fill
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from run_ends import same_weights

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.checkpoints.checkpoint import CheckpointFailed
from raytrain_speedup.scaling.launch import launch
from raytrain_speedup.tracking import open_tracker

KEYS = {
    **{"data.image_size": 8, "data.augment": "crop", "data.val_fraction": 0.5, "pruning.method": "infobatch"},
    **{"train.epochs": 30, "train.batch_size": 34, "train.eval_every": 0, "train.checkpoint_every": 4},
    **{"scaling.workers": 2, "scaling.start_timeout": 300},
}
ACCOUNT = ("samples_shown", "passes_saved", "compute_spent")
WHOLE = Path("whole")

Told = dict[str, Any]


class Said(logging.Handler):
    """Remembers what the package warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Heard:
    """Notes of every epoch the samples that were shown until its end, and brings a fault, once.

    Args:
        at: the epoch whose report brings it.
        disturb: the fault.

    Attributes:
        shown: (epoch, samples), in the order of the reports.
        nodes: that the workers were on before the fault.
    """

    def __init__(self, at: int | None = None, disturb: Callable[[], Any] | None = None) -> None:
        self.shown: list[tuple[int, int]] = []
        self.nodes: set[str] = set()
        self._at, self._disturb = at, disturb

    def __call__(self, kind: str, metrics: Any) -> None:
        if kind != "report" or "kept_fraction" not in metrics:
            return
        self.shown.append((metrics["epoch"], metrics["samples_shown"]))
        if self._disturb and metrics["epoch"] == self._at and not self.nodes:
            self.nodes = {worker.node_id for worker in _workers()}
            self._disturb()


class Nodes:
    """A head and three nodes of one CPU each, one of them to spare, and runs of two workers on them."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "resources": {"tune_driver": 8}, "include_dashboard": True}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = {node.node_id: node for node in [self.cluster.add_node(num_cpus=1) for _ in range(3)]}
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.said = Said()
        logging.getLogger("raytrain_speedup").addHandler(self.said)

    # --- the faults ------------------------------------------------------------------------------------

    def worker_killed(self) -> Told:
        def kill() -> None:
            os.kill(int(_workers()[-1].pid), signal.SIGKILL)

        return self._compared(Path("worker"), Heard(15, kill))

    def node_lost(self) -> Told:
        def lose() -> None:
            node = self.nodes.pop(_workers()[-1].node_id)
            self.cluster.remove_node(node, allow_graceful=False)

        return self._compared(Path("node"), Heard(15, lose))

    def storage_away(self, seconds: str) -> Told:
        mount, away = Path("mount"), Path("away")

        def outage() -> None:
            mount.rename(away)
            threading.Timer(float(seconds), lambda: away.rename(mount)).start()

        began = time.monotonic()
        told = self._compared(mount / "run", Heard(3, outage))
        return told | {"seconds": time.monotonic() - began}

    def full_disk(self, disk: str) -> Told:
        """Ends the run, which has checkpoints; with space again it is begun again."""
        folder, heard, error = Path(disk) / "run", Heard(9, lambda: fill(Path(disk))), ""
        try:
            launch(load_experiment("digits", KEYS), folder, heard)
        except CheckpointFailed as failed:
            error = str(failed)
        left = [path.name for path in folder.iterdir()]
        before = {"error": error, "shown": heard.shown, "nodes": len(heard.nodes), "left": left}
        (Path(disk) / "filler").unlink()
        return self._compared(folder, Heard()) | {"before": before}

    def driver_killed(self) -> Told:
        """With its workers alive; another driver goes on."""
        self.whole()
        train = [
            sys.executable,
            "-m",
            "raytrain_speedup.cli",
            "train",
            "digits",
            "--tracking-uri",
            "json:tracked",
        ]
        train += [f"{key}={value}" for key, value in KEYS.items()]
        variables = os.environ | {"RAY_ADDRESS": self.cluster.address}
        first = subprocess.Popen([*train, "scaling.storage=driver"], stdout=subprocess.DEVNULL, env=variables)
        while not list(Path("driver").glob("*/checkpoint-000002/manifest.json")):
            assert first.poll() is None
            time.sleep(0.02)
        alive = len({worker.node_id for worker in _workers()})
        first.kill()
        first.wait()
        [folder] = Path("driver").iterdir()
        ended = bool(list(folder.glob("checkpoint-*/model.pt")))
        again = subprocess.run(
            [*train, "--resume", str(folder)], capture_output=True, text=True, env=variables
        )
        assert again.returncode == 0, again.stderr
        [run] = open_tracker("json:tracked").runs(tag="speedup.role")
        return {
            **{"nodes": alive, "ended": ended, "output": again.stdout},
            **{"account": {name: run.metrics[name] for name in ACCOUNT}, "steps": _steps(folder)},
            "same weights": same_weights(folder, WHOLE),
        }

    # --- runs ------------------------------------------------------------------------------------------

    @functools.cache  # noqa: B019 (there is one, as long as the process lives)
    def whole(self) -> Told:
        """The run that nothing happens to."""
        return self._run(WHOLE, Heard())

    def _compared(self, folder: Path, heard: Heard) -> Told:
        self.whole()
        return self._run(folder, heard) | {"same weights": same_weights(folder, WHOLE)}

    def _run(self, folder: Path, heard: Heard) -> Told:
        self.said.lines.clear()
        metrics = launch(load_experiment("digits", KEYS), folder, heard).to_dict()
        return {
            **{"shown": heard.shown, "nodes": len(heard.nodes), "said": list(self.said.lines)},
            **{"account": {name: metrics[name] for name in ACCOUNT}, "steps": _steps(folder)},
        }


def _workers() -> list[Any]:
    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    return list_actors(ray.get_runtime_context().gcs_address, filters=alive, detail=True)


def _steps(folder: Path) -> int:
    """Of the run's last checkpoint."""
    return int(torch.load(max(folder.glob("checkpoint-*")) / "run.pt", weights_only=True)["steps_taken"])


def main() -> None:
    nodes = Nodes()
    for line in sys.stdin:
        name, *arguments = line.split()
        try:
            answer = getattr(nodes, name)(*arguments)
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print("answer:", json.dumps(answer), flush=True)
    ray.shutdown()
    nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
