"""The cluster of a `cluster.yaml` for others than Ray's launcher: KubeRay on Kubernetes, and SkyPilot.

`cluster.yaml` says what nodes there are, how many, and what is installed on them. KubeRay takes that as a
`RayCluster` (https://ray-project.github.io/kuberay/reference/api/), SkyPilot as a task that starts Ray on its nodes
(https://docs.skypilot.co/en/latest/reference/yaml-spec.html). Neither was tried on a real cluster here; tests hold
the manifests to those references.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from raytrain_speedup.settings import UserError

Plain = dict[str, Any]

SHARED, HEAD_DISK = "/mnt/shared", "/mnt/head"
"""Where checkpoints and results go on every node, and where the head has its MLflow database."""

CLAIM_SHARED, CLAIM_HEAD = "speedup-shared", "speedup-head"
"""Volume claims: of many nodes (ReadWriteMany), and of the head alone."""

PORT = 6379
"""Of Ray in a SkyPilot task; SkyPilot's own Ray has another one."""

GRACE_SECONDS, DRAIN_SECONDS = 60, 50
"""That Kubernetes gives a GPU pod between SIGTERM and SIGKILL, and of them, for which Ray drains the node. A node
that is shut down may give less: GKE's spot nodes 15 s."""


def read_cluster(path: Path) -> Plain:
    """A `cluster.yaml`.

    Raises:
        UserError: if it cannot be read, or is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); expected a cluster.yaml"
        ) from None
    if not isinstance(content, dict) or not {"head_node_type", "available_node_types"} <= content.keys():
        raise UserError(
            f"{path}: no cluster of Ray's launcher; expected head_node_type and available_node_types"
        )
    return content


def kuberay(cluster: Mapping[str, Any], *, image: str, memory_per_cpu: int) -> Plain:
    """A `RayCluster` of the same node types, which starts and ends its GPU pods by itself.

    Types of equal resources, such as spot and on demand, are one group: a pod does not say which machine it is put
    on, and Kubernetes' own autoscaler has that choice. A GPU pod that is evicted, of a spot node that is taken back
    too, hears SIGTERM: `ray start --block`, as KubeRay starts Ray, then drains its node, of which runs hear
    (`scaling/spot_notice.py`), and ends after `DRAIN_SECONDS` or when nothing runs there.

    Args:
        cluster: of `read_cluster`.
        image: has this package and its Ray, torch and CUDA.
        memory_per_cpu: GiB that a pod asks for each CPU.
    """
    head, types = cluster["head_node_type"], cluster["available_node_types"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": cluster["cluster_name"]},
        "spec": {
            "rayVersion": _pinned(cluster, "ray"),
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": 60 * int(cluster.get("idle_timeout_minutes", 5))},
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "rayStartParams": {**_start(types[head]["resources"]), "dashboard-host": "0.0.0.0"},
                "template": _pod("ray-head", image, {"CPU": 2}, memory_per_cpu, disk=True),
            },
            "workerGroupSpecs": [
                {
                    "groupName": group.common_name,
                    "replicas": group.least,
                    "minReplicas": group.least,
                    "maxReplicas": group.most,
                    "rayStartParams": _start(group.kind["resources"]),
                    "template": _gpu_pod(image, group.kind["resources"], memory_per_cpu),
                }
                for group in groups_of(cluster, lambda kind: kind["resources"])
            ],
        },
    }


def skypilot(cluster: Mapping[str, Any], *, accelerators: str, nodes: int, command: str) -> Plain:
    """A task of SkyPilot that starts Ray on its nodes and watches for the notice of each, and runs a command on the
    first.

    Args:
        cluster: of `read_cluster`; its node types say nothing of accelerators' names.
        accelerators: of a node, as SkyPilot calls them: L4:1, H100:8.
        nodes: how many.
        command: such as `speedup sweep search_spaces/infobatch-cifar10.yaml`.
    """
    spot = {"InstanceMarketOptions" in kind.get("node_config", {}) for kind in worker_types(cluster).values()}
    market: Plain = {"use_spot": True in spot}
    if len(spot) == 2:  # spot while it is to be had
        market = {"ordered": [{"use_spot": True}, {"use_spot": False}]}
    packages = " ".join(f"{name}=={_pinned(cluster, name)}" for name in ("torch", "torchvision"))
    ray = f"'ray[default,train,tune]=={_pinned(cluster, 'ray')}'"
    return {
        "name": cluster["cluster_name"],
        "num_nodes": nodes,
        "workdir": ".",
        "resources": {"accelerators": accelerators, "disk_size": 200, **market},
        "setup": f"python3 -m venv ~/venv\n~/venv/bin/pip install -q . {ray} {packages}\n",
        # SkyPilot brings the script: it starts Ray on every node, and on the first waits for the others.
        # The watcher is in a session of its own: on the other nodes the task ends here, and Ray stays, as it does.
        "run": "export PATH=$HOME/venv/bin:$PATH\n"
        f'setsid -f speedup cluster watch --address "$(echo "$SKYPILOT_NODE_IPS" | head -n1):{PORT}" '
        ">> ~/watch.log 2>&1 < /dev/null\n"
        "~/sky_templates/ray/start_cluster\n"
        'if [ "$SKYPILOT_NODE_RANK" = 0 ]; then\n'
        f"  RAY_ADDRESS=127.0.0.1:{PORT} {command}\n"
        "fi\n",
    }


def worker_types(cluster: Mapping[str, Any]) -> Plain:
    """The node types but that of the head, in the order in which equal ones are tried."""
    types = cluster["available_node_types"]
    return {name: types[name] for name in sorted(types) if name != cluster["head_node_type"]}


@dataclass(frozen=True)
class Group:
    """Node types that are one elsewhere.

    Attributes:
        names: in the order in which they are tried.
        kind: the first of them.
        least, most: nodes of all of them together.
    """

    names: list[str]
    kind: Plain
    least: int
    most: int

    @property
    def common_name(self) -> str:
        """What their names begin with."""
        if len(self.names) == 1:
            return self.names[0]
        first, last = min(self.names), max(self.names)
        letters = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        return "".join(letter for letter, _ in letters).rstrip("-_0123456789") or first


def groups_of(cluster: Mapping[str, Any], key: Callable[[Plain], Any]) -> list[Group]:
    """The node types of workers, those of one key together.

    Args:
        cluster: of `read_cluster`.
        key: what is compared of a node type.
    """
    bound = int(cluster.get("max_workers", 1))
    same: dict[str, Plain] = {}
    for name, kind in worker_types(cluster).items():
        same.setdefault(json.dumps(key(kind), sort_keys=True), {})[name] = kind
    groups = []
    for types in same.values():
        least = sum(kind.get("min_workers", 0) for kind in types.values())
        most = min(bound, sum(kind.get("max_workers", bound) for kind in types.values()))
        groups.append(Group(list(types), next(iter(types.values())), least, most))
    return groups


def as_yaml(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, its commands line by line."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(dict(manifest), Dumper=Dumper, sort_keys=False, width=1000)


def _pinned(cluster: Mapping[str, Any], package: str) -> str:
    """The version that the set-up commands install."""
    commands = "\n".join(map(str, cluster.get("setup_commands", ())))
    found = re.search(rf"(?<![\w-]){package}(?:\[[\w,]*\])?==([\w.]+)", commands)
    if found is None:
        raise UserError(f"setup_commands: no version of {package}; expected {package}==...")
    return found[1]


def _start(resources: Mapping[str, float]) -> dict[str, str]:
    """Arguments of `ray start`: what is not CPUs and GPUs has to be said."""
    own = {name: value for name, value in resources.items() if name not in ("CPU", "GPU")}
    known = {"num-cpus": str(resources.get("CPU", 0)), "num-gpus": str(resources.get("GPU", 0))}
    return known | ({"resources": json.dumps(json.dumps(own))} if own else {})


def _gpu_pod(image: str, resources: Mapping[str, float], memory_per_cpu: int) -> Plain:
    pod = _pod("ray-worker", image, resources, memory_per_cpu)
    (container,) = pod["spec"]["containers"]
    container["env"].append({"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(DRAIN_SECONDS)})
    return {"spec": {"terminationGracePeriodSeconds": GRACE_SECONDS, **pod["spec"]}}


def _pod(
    name: str, image: str, resources: Mapping[str, float], memory_per_cpu: int, *, disk: bool = False
) -> Plain:
    cpus = max(1, int(resources.get("CPU", 1)))
    limits: Plain = {"cpu": cpus, "memory": f"{cpus * memory_per_cpu}Gi"}
    if resources.get("GPU"):
        limits["nvidia.com/gpu"] = int(resources["GPU"])
    claims = {"shared": (CLAIM_SHARED, SHARED)} | ({"head": (CLAIM_HEAD, HEAD_DISK)} if disk else {})
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{HEAD_DISK}/mlflow.db"} if disk else {}
    return {
        "spec": {
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "resources": {"requests": dict(limits), "limits": limits},
                    "env": [{"name": key, "value": value} for key, value in variables.items()],
                    "volumeMounts": [
                        {"name": volume, "mountPath": place} for volume, (_, place) in claims.items()
                    ]
                    + [{"name": "shm", "mountPath": "/dev/shm"}],
                }
            ],
            "volumes": [
                {"name": volume, "persistentVolumeClaim": {"claimName": claim}}
                for volume, (claim, _) in claims.items()
            ]
            # a pod has 64 MiB of shared memory otherwise, and loaders and Ray's objects live there
            + [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        }
    }
