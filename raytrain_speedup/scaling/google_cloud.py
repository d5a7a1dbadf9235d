"""The cluster of a `cluster.yaml` (on AWS) on Google Cloud: again a file for Ray's launcher.

What is said of nodes, their number, set-up and Ray's own commands stays; machines, images, disks, spot and accounts
are as Compute Engine names them (https://cloud.google.com/compute/docs/reference/rest/v1/instances); the bucket is
of Cloud Storage. Not tried there; tests hold it to Ray's schema, and the nodes to the names of that reference.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from raytrain_speedup.scaling.manifests import SHARED, Plain, groups_of
from raytrain_speedup.settings import UserError

IMAGES = "projects/{}/global/images/family/{}"
HEAD_IMAGE = IMAGES.format("ubuntu-os-cloud", "ubuntu-2404-lts-amd64")
GPU_IMAGE = IMAGES.format("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580")
"""Ubuntu 24.04, the second one with NVIDIA's driver."""

_WITH_GPUS = re.compile(r"[ag]\d")
"""Families of machines that have them built in: L4 in g2, A100 in a2, H100 in a3."""

CLIENT = "google-api-python-client google-auth-httplib2 cryptography"
"""What Ray's provider imports on the head."""

NETWORK, ACCOUNT = "speedup", "speedup-worker"
"""A subnetwork whose firewall takes SSH from your address alone, and the GPU nodes' service account."""


def on_google(
    cluster: Mapping[str, Any],
    *,
    project: str,
    zone: str,
    machine: str,
    head_machine: str,
    bucket: str,
    share: str | None = None,
) -> Plain:
    """A cluster of the same node types on Google Cloud; those that differ in an AWS machine's size alone are one.

    Args:
        cluster: of `read_cluster`, on AWS.
        project: its id.
        zone: such as us-central1-a: Ray starts nodes in one zone.
        machine: of the GPU nodes; it has to have the resources that the file says.
        head_machine: of the head.
        bucket: of Cloud Storage, where the head's database is kept.
        share: of Filestore, as HOST:/NAME, to be mounted; without it storage is the bucket.

    Raises:
        UserError: for a cluster of another provider, or a zone that is none.
    """
    if (kind := cluster.get("provider", {}).get("type")) != "aws":
        raise UserError(f"provider.type: {kind!r} is not allowed; expected 'aws', whose nodes are translated")
    region, _, letter = zone.rpartition("-")
    if not region or len(letter) != 1:
        raise UserError(f"zone: {zone!r} is not allowed; expected one such as us-central1-a")
    translated = copy.deepcopy(dict(cluster))
    translated["provider"] = {
        "type": "gcp",
        "project_id": project,
        "region": region,
        "availability_zone": zone,
        "cache_stopped_nodes": cluster["provider"].get("cache_stopped_nodes", False),
    }
    translated["available_node_types"] = _node_types(translated, machine, head_machine)
    if share is not None:
        translated["setup_commands"] = [*cluster.get("setup_commands", ()), *_filestore(share)]
    translated["head_setup_commands"] = [
        re.sub(r"\bboto3(==[\w.]+)?", CLIENT, re.sub(r"s3://[^/\s]+", f"gs://{bucket}", command))
        for command in cluster.get("head_setup_commands", ())
    ]
    return translated


def _node_types(cluster: Plain, machine: str, head_machine: str) -> Plain:
    """Those of a cluster on AWS with a provider on Google Cloud; equal ones once."""
    project, region, zone = (
        cluster["provider"][key] for key in ("project_id", "region", "availability_zone")
    )
    subnet = f"projects/{project}/regions/{region}/subnetworks/{NETWORK}"
    account = {
        "email": f"{ACCOUNT}@{project}.iam.gserviceaccount.com",
        "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
    }
    head, types = cluster["head_node_type"], cluster["available_node_types"]
    for name, node in types.items():
        chosen, gpus = head_machine if name == head else machine, bool(node["resources"].get("GPU"))
        if gpus and not _WITH_GPUS.match(chosen):
            raise UserError(f"machine: {chosen!r} has no GPUs built in; expected one such as g2-standard-8")
        node["node_config"] = _instance(node["node_config"], chosen, gpus, zone=zone, subnet=subnet)
        if name != head:
            node["node_config"]["serviceAccounts"] = [account]
    groups = groups_of(cluster, lambda node: [node["resources"], node["node_config"]])
    return {head: types[head]} | {
        group.names[0]: {**group.kind, "min_workers": group.least, "max_workers": group.most}
        for group in groups
    }


def _instance(aws: Mapping[str, Any], machine: str, gpus: bool, *, zone: str, subnet: str) -> Plain:
    """An instance with the disk of one on AWS, and spot where that is."""
    disks = [disk["Ebs"]["VolumeSize"] for disk in aws.get("BlockDeviceMappings", ()) if "Ebs" in disk]
    instance: Plain = {
        "machineType": machine,
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "type": "PERSISTENT",
                "initializeParams": {
                    "diskSizeGb": disks[0] if disks else 100,
                    "diskType": f"zones/{zone}/diskTypes/pd-balanced",
                    "sourceImage": GPU_IMAGE if gpus else HEAD_IMAGE,
                },
            }
        ],
        "networkInterfaces": [
            {
                "subnetwork": subnet,
                "accessConfigs": [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}],
            }
        ],
    }
    scheduling: Plain = {"onHostMaintenance": "TERMINATE"} if gpus else {}
    if aws.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        scheduling |= {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "automaticRestart": False,
        }
    return instance | ({"scheduling": scheduling} if scheduling else {})


def _filestore(share: str) -> list[str]:
    """Set-up of a shared file system."""
    return [
        "sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq nfs-common",
        f"sudo mkdir -p {SHARED}",
        f"mountpoint -q {SHARED} || sudo mount -t nfs -o hard,timeo=600,retrans=2 {share} {SHARED}",
        f"sudo chown ubuntu {SHARED}",
    ]
