"""A sweep on Ray's fake provider of nodes that loses half of them: what it costs beyond the steps that were lost.

    python tests/benchmarks/lost_node.py

A head without CPUs and two nodes of one CPU each, which Ray's autoscaler starts here as processes. The sweep runs
twice: undisturbed, and with one node killed in the middle of a trial. Every step of every trial is written down,
with the CPU seconds of its process. Prints a table; recorded in results/cpu-lost-node.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._private.services import get_node_ip_address

ROOT = Path(__file__).parents[2]
EPOCHS, TRIALS = int(os.environ.get("EPOCHS", "120")), 4

TWO_NODES = {"node": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 2, "max_workers": 2}}

COUNTING = """
import os, time
from pathlib import Path
from raytrain_speedup.engine import loop

LOG = Path(os.environ.get("LOST_NODE_LOG", {log!r}))
step = loop.Loop.train_step
note = None

def train_step(self, given, batch, **keys):
    global note
    step(self, given, batch, **keys)
    note = note or (LOG / str(os.getpid())).open("a", buffering=1)
    trial = self.reporter.folder.name
    note.write(f"{{trial}} {{self.epoch}} {{given.number}} {{time.process_time()}} {{time.time()}}\\n")

if loop.Loop.train_step is step and not hasattr(loop, "counted"):
    loop.counted, loop.Loop.train_step = True, train_step
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def autoscaling_config(
    address: str, kinds: Mapping[str, Any], provider: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `ray start --autoscaling-config` takes on a head whose nodes are processes of its machine.

    Args:
        address: HOST:PORT of the head.
        kinds: node types beside the head's.
        provider: what differs of the provider.
    """
    types = {
        "ray.head.default": {"resources": {"CPU": 0, "tune_driver": 64}, "node_config": {}, "max_workers": 0},
        **kinds,
    }
    whole_provider = {
        **{"type": "fake_multinode", "disable_launch_config_check": True, "disable_node_updaters": True},
        **{"gcs_address": address, "use_node_id_as_ip": True},
        **(provider or {}),
    }
    return {
        **{"cluster_name": "fake", "max_workers": 2, "idle_timeout_minutes": 60, "upscaling_speed": 10},
        **{"provider": whole_provider, "available_node_types": types, "head_node_type": "ray.head.default"},
        **{"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False},
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }


@contextlib.contextmanager
def fake_cluster(
    home: Path,
    kinds: Mapping[str, Any] = TWO_NODES,
    *,
    provider: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The address of a head whose autoscaler starts nodes here.

    Args:
        home: the folder of all that belongs to it; its path is short.
        kinds: node types beside the head's.
        provider: what differs of the provider.
        variables: for the head's `ray start`.
    """
    port, client, dashboard = free_ports(3)
    address = get_node_ip_address()
    ray_command = str(Path(sys.executable).with_name("ray"))
    subprocess.run(
        [ray_command, "get-auth-token", "--generate"], env=environment(home), check=True, capture_output=True
    )
    (home / "fake.yaml").write_text(json.dumps(autoscaling_config(f"{address}:{port}", kinds, provider)))
    resources = json.dumps({"tune_driver": 64})
    command = [
        *(ray_command, "start", "--head", "--block", "--num-cpus=0"),
        *(f"--resources={resources}", f"--autoscaling-config={home / 'fake.yaml'}", f"--port={port}"),
        *(f"--node-ip-address={address}", f"--ray-client-server-port={client}", "--disable-usage-stats"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={home / 'ray'}"),
    ]
    head = subprocess.Popen(
        command,
        env=environment(home) | dict(variables or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"{address}:{port}"
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(15)
        for process in ours(home):  # and what the autoscaler started
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def environment(home: Path) -> dict[str, str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return known | {
        **{
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
        },
        **{"HOME": str(home), "RAY_AUTH_MODE": "token"},
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
    }


def ours(home: Path, name: str = "") -> list[psutil.Process]:
    """The processes of this cluster, by the place of its files, whose command names something."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(home) in line and name in line.partition(" ")[0] and process.pid != os.getpid():
            found.append(process)
    return found


@dataclass
class Taken:
    """A step as it was written down."""

    pid: int
    trial: str
    at: tuple[int, int]
    cpu: float
    when: float


def steps(log: Path) -> list[Taken]:
    found = []
    for file in log.iterdir():
        for line in file.read_text().splitlines():
            trial, epoch, number, cpu, when = line.split()
            found.append(Taken(int(file.name), trial, (int(epoch), int(number)), float(cpu), float(when)))
    return sorted(found, key=lambda step: step.when)


def kill_a_node(home: Path, log: Path) -> int:
    """When half of all steps are taken: the node of the process that took the last one, and all on it."""
    per_trial = None
    while True:
        time.sleep(0.2)
        taken = steps(log)
        done = {step.trial for step in taken if step.at[0] == EPOCHS - 1}
        if not done:
            continue
        per_trial = per_trial or sum(step.trial in done for step in taken) / len(done)
        running = [step for step in taken[-1:] if step.trial not in done and 0.3 < step.at[0] / EPOCHS < 0.7]
        if len(taken) < 0.4 * TRIALS * per_trial or not running:
            continue
        worker = psutil.Process(running[0].pid)
        raylet = next(parent for parent in worker.parents() if "raylet" in parent.name())
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        return worker.pid


def swept(home: Path, address: str, name: str, *, disturbed: bool) -> tuple[list[Taken], float, str]:
    """The steps of a sweep, its wall seconds and what it said."""
    folder = home / name
    log = folder / "log"
    log.mkdir(parents=True)
    (folder / "counting.py").write_text(COUNTING.format(log=str(log)))
    keys = {"data.image_size": 8, "train.epochs": EPOCHS, "train.eval_every": 0, "train.threads": 1}
    search = {"pruning.prune_ratio": {"type": "float", "low": 0.2, "high": 0.5, "step": 0.1}}
    space = {
        **{"name": name, "experiment": "digits", "trial": {"pruning.method": "infobatch"}, "search": search},
        "overrides": keys | {"plugins": ["counting"], "python_path": [str(folder)]},
        **{"trials": TRIALS, "seeds": [0], "confirm": {"winners": 0}},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    command = [
        *(sys.executable, "-m", "raytrain_speedup.cli", "sweep", "space.yaml", "--out", str(folder / "out")),
        *(f"scaling.storage={folder / 'runs'}", "scaling.start_timeout=300"),
        *("--tracking-uri", f"json:{folder / 'tracked'}"),
    ]
    began = time.time()
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(home) | {"RAY_ADDRESS": address}, stdout=said, stderr=said
        )
        if disturbed:
            kill_a_node(home, log)
        code = process.wait(1500)
    text = (folder / "said").read_text()
    assert code == 0, text[-3000:]
    return steps(log), time.time() - began, text


def work(taken: list[Taken]) -> tuple[float, float, float]:
    """CPU seconds: of the processes up to their last step, of steps taken again, and before the first steps."""
    total = start = again = 0.0
    seen: set[tuple[str, tuple[int, int]]] = set()
    for pid in dict.fromkeys(step.pid for step in taken):
        own = [step for step in taken if step.pid == pid]
        total, start = total + own[-1].cpu, start + own[0].cpu
    last: dict[int, float] = {}
    for step in taken:
        spent = step.cpu - last.get(step.pid, step.cpu)
        again += spent if (step.trial, step.at) in seen else 0.0
        seen.add((step.trial, step.at))
        last[step.pid] = step.cpu
    return total, again, start


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="ln"))  # a short path: Ray's sockets live below it
    try:
        with fake_cluster(home) as address:
            whole, whole_seconds, _ = swept(home, address, "whole", disturbed=False)
        shutil.rmtree(home / "ray", ignore_errors=True)
        with fake_cluster(home) as address:
            lost, lost_seconds, _ = swept(home, address, "lost", disturbed=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"| {TRIALS} trials of {EPOCHS} epochs, two nodes | undisturbed | one killed |\n|---|--:|--:|")
    rows = []
    for taken, seconds in ((whole, whole_seconds), (lost, lost_seconds)):
        counts = Counter((step.trial, step.at) for step in taken)
        again = {trial for (trial, _), count in counts.items() if count > 1}
        pids = {step.pid for step in taken}
        total, repeated, start = work(taken)
        spent = (total, repeated, start, seconds)
        rows.append((len(counts), len(taken) - len(counts), len(again), len(pids), *spent))
    names = (
        *("steps of the trials", "steps taken again", "trials that took steps again", "processes"),
        *("CPU s in all", "CPU s of steps taken again", "CPU s before first steps", "wall s"),
    )
    for name, *values in zip(names, *rows, strict=True):
        shown = " | ".join(f"{value:,.0f}" if isinstance(value, int) else f"{value:,.1f}" for value in values)
        print(f"| {name} | {shown} |")
    extra = rows[1][4] - rows[1][5] - rows[0][4]
    print(f"\nBeyond the steps taken again: {extra:+.1f} CPU s, {extra / rows[0][4]:+.1%}.")


if __name__ == "__main__":
    main()
