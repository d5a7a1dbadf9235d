"""The cluster of a `cluster.yaml` (on AWS) on machines of one's own: again a file for Ray's launcher.

Ray's provider `local` (https://docs.ray.io/en/latest/cluster/vms/user-guides/launching-clusters/on-premises.html)
starts Ray by SSH on machines that are there already. They have no types: Ray takes what it finds on each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain_speedup.scaling.manifests import Plain
from raytrain_speedup.settings import UserError

_CLOUDS_OWN = (
    "max_workers",
    "idle_timeout_minutes",
    "upscaling_speed",
    "head_node_type",
    "available_node_types",
)


def on_own_machines(
    cluster: Mapping[str, Any], *, head: str, workers: Sequence[str], user: str, key: str
) -> Plain:
    """A cluster of the same set-up and start commands on machines that are there.

    Args:
        cluster: of `read_cluster`, on AWS.
        head: address of the machine that steers, whose CPUs and GPUs stay unused.
        workers: addresses of those that train; the launcher reaches the head, and the head reaches them.
        user: by whose name SSH is spoken; may use sudo.
        key: file of the private key for that, where `ray up` runs.

    Raises:
        UserError: for a cluster of another provider, or a head that is a worker too.
    """
    if (kind := cluster.get("provider", {}).get("type")) != "aws":
        raise UserError(f"provider.type: {kind!r} is not allowed; expected 'aws', whose set-up is translated")
    if not workers or head in workers or len(set(workers)) < len(workers):
        raise UserError(
            f"machines: {', '.join((head, *workers))} is not allowed; expected a head and others, each once"
        )
    resources = dict(cluster["available_node_types"][cluster["head_node_type"]]["resources"])
    steers = f" --num-cpus={resources.pop('CPU', 0)} --num-gpus=0 --resources='{_flow(resources)}'"
    kept = {name: value for name, value in cluster.items() if name not in _CLOUDS_OWN}
    translated = _for_user(kept, user)
    translated["provider"] = {"type": "local", "head_ip": head, "worker_ips": list(workers)}
    translated["auth"] = {"ssh_user": user, "ssh_private_key": key}
    # The disk of a machine that stays is its owner's, and needs no bucket; nobody takes the machine back.
    translated["setup_commands"] = [
        command for command in translated.get("setup_commands", ()) if "mkfs" not in command
    ]
    translated["head_setup_commands"] = [
        command
        for command in translated.get("head_setup_commands", ())
        if not re.search("s3://|boto3", command)
    ]
    translated["head_start_ray_commands"] = [
        command + steers if "ray start" in command else command
        for command in translated.get("head_start_ray_commands", ())
    ]
    translated["worker_start_ray_commands"] = [
        command
        for command in translated.get("worker_start_ray_commands", ())
        if "speedup cluster watch" not in command
    ]
    return translated


def _flow(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f'"{name}": {amount:g}' for name, amount in resources.items()) + "}"


def _for_user(value: Any, user: str) -> Any:
    """With this user for `ubuntu`, and without the region of AWS."""
    if isinstance(value, Mapping):
        return {_for_user(name, user): _for_user(part, user) for name, part in value.items()}
    if isinstance(value, list):
        return [_for_user(part, user) for part in value]
    if not isinstance(value, str):
        return value
    value = value.replace("/home/ubuntu", "/root" if user == "root" else f"/home/{user}")
    return re.sub(r" AWS_REGION=[\w-]+", "", re.sub(r"\bchown ubuntu\b", f"chown {user}", value))
