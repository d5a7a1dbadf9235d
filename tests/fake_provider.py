"""A cluster whose autoscaler starts its nodes as processes of this machine: Ray's fake provider."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from ray._private.services import get_node_ip_address

ROOT = Path(__file__).parents[1]

TWO_NODES = {"node": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 2, "max_workers": 2}}


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
