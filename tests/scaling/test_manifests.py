"""Manifests of KubeRay, SkyPilot and Google Cloud against `cluster.yaml` and their references; no cluster."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from raytrain_speedup.cli import app

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster.yaml"
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def printed(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["cluster", *arguments])
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.output)


@pytest.fixture(scope="module")
def described() -> Any:
    return yaml.safe_load(CLUSTER.read_text())


def test_kuberay_has_the_nodes_of_the_file(described: Any) -> None:
    found = printed("kuberay", str(CLUSTER), "--image", "registry/speedup:1", "--memory-per-cpu", "8")
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayCluster")
    spec, types = found["spec"], described["available_node_types"]
    assert set(spec) == {
        *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
        *("headGroupSpec", "workerGroupSpecs"),
    }  # names of the API reference
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * described["idle_timeout_minutes"]
    head = spec["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0", "trials never land on the head"
    assert json.loads(shlex.split(head["resources"])[0]) == {"tune_driver": 64}, "quoted for a shell"
    (workers,) = spec["workerGroupSpecs"]  # spot or not is said of machines, not of pods
    assert workers["groupName"] == "gpu" and len(types) == 4
    assert workers["maxReplicas"] == described["max_workers"] and workers["minReplicas"] == 0
    (container,) = workers["template"]["spec"]["containers"]
    assert container["image"] == "registry/speedup:1"
    wanted = {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 1}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    drained = {entry["name"]: int(entry["value"]) for entry in container["env"]}[DRAIN_VARIABLE]
    grace = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert 30 <= drained < grace, "Ray's processes end before Kubernetes kills them"
    assert (
        "nvidia.com/gpu"
        not in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    )


def test_every_mount_has_its_volume_and_the_head_alone_the_database() -> None:
    spec = printed("kuberay", str(CLUSTER))["spec"]
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    mounted = []
    for pod in (group["template"]["spec"] for group in pods):
        mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]} and {"shared", "shm"} <= mounts
        mounted.append("head" in mounts)
    assert mounted == [True, False]
    (uri,) = (entry["value"] for entry in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"])
    assert uri == "sqlite:////mnt/head/mlflow.db"


def test_skypilot_runs_the_command_on_the_first_node(described: Any) -> None:
    command = "speedup sweep search_spaces/combined.yaml --trials 4"
    found = printed(
        "skypilot", command, "--cluster", str(CLUSTER), "--accelerators", "H100:8", "--nodes", "4"
    )
    assert found["num_nodes"] == 4 and found["resources"] == {
        **{"accelerators": "H100:8", "disk_size": 200},
        "ordered": [{"use_spot": True}, {"use_spot": False}],
    }
    installed = " ".join(described["setup_commands"])
    for package in ("'ray[default,train,tune]==", "torch==", "torchvision=="):
        version = installed.partition(package)[2].split()[0]
        assert package + version in found["setup"], "the versions of the cluster file"
    lines = found["run"].splitlines()
    inside = lines[lines.index('if [ "$SKYPILOT_NODE_RANK" = 0 ]; then') + 1 : lines.index("fi")]
    assert [line.strip() for line in inside] == [f"RAY_ADDRESS=127.0.0.1:6379 {command}"]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_node_of_skypilot_has_a_watcher(rank: int, tmp_path: Path) -> None:
    """The task as a shell runs it, with other programs in their places: the watcher's session is its own, so that
    it stays where the task ends, and it is told which Ray is meant, for SkyPilot has one too."""
    programs = {"venv/bin/speedup": "speedup", "sky_templates/ray/start_cluster": "start_cluster"}
    for place, name in programs.items():
        program = tmp_path / place
        program.parent.mkdir(parents=True)
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{name} $*; $(ps -o sid= -p $$ | tr -d " ")" >> $HOME/ran\n'
        )
        program.chmod(0o755)
    task = printed("skypilot", "speedup recipes", "--cluster", str(CLUSTER), "--nodes", "2")["run"]
    given = {
        "HOME": str(tmp_path),
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    }
    shell = ["bash", "-c", f"{task}\nps -o sid= -p $$"]
    done = subprocess.run(shell, env={**os.environ, **given}, capture_output=True, text=True, check=True)
    for _ in range(200):
        ran = (tmp_path / "ran").read_text().splitlines()
        if len(ran) == 3 - rank:
            break
        time.sleep(0.05)
    sessions = {command: session for command, _, session in (line.partition("; ") for line in ran)}
    watch = "cluster watch --address 10.0.0.7:6379"
    assert sessions.keys() == {
        "start_cluster ",
        f"speedup {watch}",
        *(["speedup recipes"] if rank == 0 else []),
    }
    assert sessions[f"speedup {watch}"] != done.stdout.strip() == sessions["start_cluster "]
    assert CliRunner().invoke(app, [*watch.split()[:2], "--help"]).exit_code == 0


def without(described: Any, *names: str) -> Any:
    """The cluster without some of its node types."""
    types = described["available_node_types"]
    return {**described, "available_node_types": {name: types[name] for name in types if name not in names}}


def test_groups_of_pods_are_those_of_unequal_resources(tmp_path: Path, described: Any) -> None:
    cluster = copy.deepcopy(described)
    cluster["max_workers"] = 9
    cluster["available_node_types"]["gpu-2-spot-larger"]["resources"] = {"CPU": 16, "GPU": 1}
    cluster["available_node_types"]["gpu-3-on-demand"]["min_workers"] = 1
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    groups = printed("kuberay", str(file))["spec"]["workerGroupSpecs"]
    assert [(group["groupName"], group["minReplicas"], group["maxReplicas"]) for group in groups] == [
        *(("gpu", 1, 9), ("gpu-2-spot-larger", 0, 8))  # all of them: at most the cluster's nine
    ]


@pytest.mark.parametrize(
    ("left_out", "market"),
    [
        (["gpu-3-on-demand"], {"use_spot": True}),
        (["gpu-1-spot", "gpu-2-spot-larger"], {"use_spot": False}),
    ],
)
def test_one_market_is_all_that_skypilot_is_told_of(
    left_out: list[str], market: Any, tmp_path: Path, described: Any
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(without(described, *left_out)))
    found = printed("skypilot", "speedup recipes", "--cluster", str(file))
    assert found["resources"] == {"accelerators": "L4:1", "disk_size": 200, **market}


def test_google_cloud_has_the_nodes_of_the_file(described: Any) -> None:
    found = printed("gcp", str(CLUSTER), "--project", "mine", "--bucket", "ours")
    validate_config(prepare_config(copy.deepcopy(found)))
    kept = {"provider", "available_node_types", "head_setup_commands"}
    assert {key: value for key, value in found.items() if key not in kept} == {
        key: value for key, value in described.items() if key not in kept
    }
    provider = found["provider"]
    assert (provider["type"], provider["region"]) == ("gcp", "us-central1")
    assert provider["availability_zone"] == "us-central1-a" and provider["project_id"] == "mine"
    # what differs in a machine's size alone is one here
    assert found["available_node_types"].keys() == {"head", "gpu-1-spot", "gpu-3-on-demand"}
    for name, node in without(described, "gpu-2-spot-larger")["available_node_types"].items():
        there = found["available_node_types"][name]
        assert {**there, "node_config": 0} == {**node, "node_config": 0}, (
            "resources and numbers are the file's"
        )
        (disk,) = there["node_config"]["disks"]
        (at_aws,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["initializeParams"]["diskSizeGb"] == at_aws["Ebs"]["VolumeSize"]
        assert disk["initializeParams"]["diskType"].startswith("zones/us-central1-a/"), (
            "a URL, says the reference"
        )
    gpu, stays = (
        found["available_node_types"][name]["node_config"] for name in ("gpu-1-spot", "gpu-3-on-demand")
    )
    assert set(gpu) == {
        *("machineType", "disks", "networkInterfaces", "scheduling", "serviceAccounts"),
    }  # of `Instance` in the API reference
    assert gpu["scheduling"] == {
        **{"onHostMaintenance": "TERMINATE", "automaticRestart": False},
        **{"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"},
    }
    assert stays == {**gpu, "scheduling": {"onHostMaintenance": "TERMINATE"}}
    assert "with-nvidia" in gpu["disks"][0]["initializeParams"]["sourceImage"]
    commands = "\n".join(found["head_setup_commands"])
    assert re.search(
        r"pip install -q google-api-python-client google-auth-httplib2 cryptography$", commands, re.M
    )
    assert commands.count("gs://ours/head") == 2 and "s3://" not in commands and "boto3" not in commands
    assert found["setup_commands"] == described["setup_commands"]


def test_filestore_is_mounted_where_it_is_named(described: Any) -> None:
    found = printed("gcp", str(CLUSTER), "--project", "mine", "--share", "10.0.0.2:/speedup")
    count = len(described["setup_commands"])
    assert found["setup_commands"][:count] == described["setup_commands"]
    more = "\n".join(found["setup_commands"][count:])
    assert "install -y -qq nfs-common" in more and "10.0.0.2:/speedup /mnt/shared" in more


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--zone", "us"], "zone: 'us' is not allowed; expected one such as us-central1-a"),
        (
            ["--machine", "n1-standard-8"],
            "machine: 'n1-standard-8' has no GPUs built in; expected one such as g2",
        ),
    ],
)
def test_what_google_cloud_has_not_is_refused_in_a_line(options: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["cluster", "gcp", str(CLUSTER), "--project", "mine", *options])
    assert says in str(result.exception or result.output)


def test_a_cluster_that_is_on_google_cloud_already_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gcp.yaml"
    file.write_text(yaml.safe_dump(printed("gcp", str(CLUSTER), "--project", "mine")))
    result = CliRunner().invoke(app, ["cluster", "gcp", str(file), "--project", "mine"])
    assert "provider.type: 'gcp' is not allowed; expected 'aws'" in str(result.exception or result.output)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: digits\n", "no cluster of Ray's launcher; expected head_node_type"),
        ("a: [", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_another_file_is_refused_in_a_line(text: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    if text is not None:
        file.write_text(text)
    result = CliRunner().invoke(app, ["cluster", "kuberay", str(file)])
    assert result.exit_code != 0 and says in str(result.exception or result.output)


def test_a_cluster_without_versions_is_refused(tmp_path: Path, described: Any) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(described | {"setup_commands": ["pip install ray"]}))
    result = CliRunner().invoke(app, ["cluster", "kuberay", str(file)])
    assert "setup_commands: no version of ray; expected ray==..." in str(result.exception or result.output)
