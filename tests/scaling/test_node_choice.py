"""Which node type of `cluster.yaml` comes first, and which once EC2 has none of it.

Ray's own bootstrap, AWS provider, launcher and scheduler against moto's EC2, with the roles of docs/cluster.md."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.ec2.models.instance_types import INSTANCE_TYPES
from ray.autoscaler._private.aws import node_provider as aws_provider
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.event_summarizer import EventSummarizer
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import ConcurrentCounter, prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

ROOT = Path(__file__).parents[2]
SPOT, LARGER, STAYS = "gpu-1-spot", "gpu-2-spot-larger", "gpu-3-on-demand"
TRIAL = {"CPU": 4, "GPU": 1}


def policies() -> dict[str, Any]:
    """What docs/cluster.md lets each role do."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    found = re.findall(r"put-role-policy --role-name (\S+) .*?--policy-document '(.*?)'\n", text, re.DOTALL)
    return {role: json.loads(policy) for role, policy in found}


class Cloud:
    """EC2 as moto has it, with the cluster that `ray up` would start in it, which may run short of a market.

    Attributes:
        short: (market, instance type) that it has none of, and the code that it answers with.
        asked: zones that were tried since the last `want`.
        calls: what the provider has asked EC2 for.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.types = config["available_node_types"]
        self.provider = aws_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
        self.short: dict[tuple[str, str], str] = {}
        self.asked: list[str] = []
        self.calls: set[str] = set()
        self._create = self.provider.ec2_fail_fast.create_instances
        for resource in (self.provider.ec2, self.provider.ec2_fail_fast):
            resource.meta.client.meta.events.register("before-call.ec2", self._note)
        self.provider.ec2_fail_fast = self
        self.forget()

    def forget(self) -> None:
        """As a head that has just been started."""
        self.now, self.short = 1_000_000.0, {}
        self.tracker = NodeProviderAvailabilityTracker(timer=lambda: self.now)
        self.scheduler = ResourceDemandScheduler(
            self.provider, self.types, self.config["max_workers"], self.config["head_node_type"], 1.0
        )

    def _note(self, model: Any, **known: Any) -> None:
        self.calls.add(f"ec2:{model.name}")

    def create_instances(self, **asked: Any) -> Any:
        self.asked.append(asked["SubnetId"])
        market = asked.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        if code := self.short.get((market, asked["InstanceType"])):
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, "RunInstances")
        return self._create(**asked)

    def wanted(self, *demands: dict[str, float], running: dict[str, int] | None = None) -> dict[str, int]:
        """The workers that Ray would start for what waits, beside those that are on their way."""
        found, _ = self.scheduler.get_nodes_to_launch(
            [], {"head": 1, **(running or {})}, list(demands), {}, [], {}, [], self.tracker.summary()
        )
        return found

    def launch(self, node_type: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Let Ray's launcher try; gives the instances."""
        monkeypatch.setattr("ray.autoscaler._private.node_launcher.time.time", lambda: self.now)
        pending = ConcurrentCounter()
        pending.inc(node_type, 1)
        launcher = BaseNodeLauncher(
            self.provider, pending, EventSummarizer(), self.tracker, node_types=self.types
        )
        self.asked = []
        return list(launcher.launch_node(self.config, 1, node_type) or ())


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # for the key pair
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # half of the time
        patch.setattr(aws_provider, "TAG_BATCH_DELAY", 0)
        text = (ROOT / "cluster.yaml").read_text()
        start = next(line for line in text.splitlines() if "RAY_AUTOSCALER_UTILIZATION_SCORER=" in line)
        patch.setenv(*start.strip().split("=", 1))
        ec2, iam = boto3.resource("ec2", "us-west-2"), boto3.client("iam")
        group = ec2.create_security_group(Description="x", GroupName="x", VpcId=next(iter(ec2.vpcs.all())).id)
        image = ec2.register_image(Name="ubuntu", RootDeviceName="/dev/sda1", Architecture="x86_64")
        for role, policy in policies().items():
            iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
            iam.put_role_policy(RoleName=role, PolicyName="x", PolicyDocument=json.dumps(policy))
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        for placeholder, value in (("ami-CHANGE-ME", image.id), ("sg-CHANGE-ME", group.id)):
            text = text.replace(placeholder, value)
        config = prepare_config(yaml.safe_load(text.replace('"CHANGE-ME"', '"0.5"')))
        validate_config(config)
        yield Cloud(bootstrap_aws(config))


@pytest.fixture
def cloud(started: Cloud) -> Cloud:
    started.forget()
    return started


def test_spot_first_then_another_spot_then_what_stays(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cloud.wanted(TRIAL, TRIAL) == {SPOT: 2}
    assert len(cloud.launch(SPOT, monkeypatch)) == 1 and len(cloud.asked) == 1
    cloud.short["spot", "g6.2xlarge"] = "InsufficientInstanceCapacity"
    assert cloud.launch(SPOT, monkeypatch) == []
    assert len(set(cloud.asked)) == 3, "every zone was asked"
    assert cloud.wanted(TRIAL, TRIAL) == {LARGER: 2}
    cloud.short["spot", "g6.4xlarge"] = "SpotMaxPriceTooLow"
    cloud.now += 5
    assert cloud.launch(LARGER, monkeypatch) == []
    assert cloud.wanted(TRIAL) == {STAYS: 1}
    (node,) = cloud.launch(STAYS, monkeypatch)
    assert cloud.wanted(TRIAL) == {STAYS: 1}
    cloud.now += 31 * 60  # spot nodes are asked for again after half an hour
    assert cloud.wanted(TRIAL) == {SPOT: 1}
    options = {
        instance.instance_lifecycle for instance in cloud.provider.ec2.instances.filter(InstanceIds=[node])
    }
    assert options == {None}, "not spot"


def test_where_there_is_nothing_each_has_its_turn(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for market, kind in (("spot", "g6.2xlarge"), ("spot", "g6.4xlarge"), ("on-demand", "g6.2xlarge")):
        cloud.short[market, kind] = "InsufficientInstanceCapacity"
    tried = []
    for _ in range(6):
        ((node_type, _),) = cloud.wanted(TRIAL).items()
        cloud.launch(node_type, monkeypatch)
        tried.append(node_type)
        cloud.now += 5
    assert tried == [SPOT, LARGER, STAYS] * 2


def test_a_mistake_in_the_file_costs_no_nodes_that_stay(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.short["spot", "g6.2xlarge"] = "InvalidParameterValue"
    assert cloud.launch(SPOT, monkeypatch) == []
    assert cloud.wanted(TRIAL) == {SPOT: 1}


def test_the_bill_is_bounded_over_all_types(cloud: Cloud) -> None:
    """By the top `max_workers`, here of fewer than Ray has on their way at a time."""
    file = cloud.config
    cloud.config = {**file, "max_workers": 4}
    try:
        cloud.forget()
        assert cloud.wanted(*[TRIAL] * 9) == {SPOT: 4}
        assert cloud.wanted(*[TRIAL] * 9, running={SPOT: 3, STAYS: 1}) == {}
        assert cloud.wanted(*[TRIAL] * 9, running={STAYS: 3}) == {SPOT: 1}
    finally:
        cloud.config = file
        cloud.forget()


def test_what_fits_better_comes_before_the_name(cloud: Cloud) -> None:
    """As Ray has it; and `gpu` comes before `gpu-3-on-demand`."""
    cloud.types = {**cloud.types, "gpu": copy.deepcopy(cloud.types[SPOT])}
    cloud.types["all-gpus"] = {**cloud.types[SPOT], "resources": {"CPU": 192, "GPU": 8}}
    before = cloud.types
    try:
        cloud.forget()
        assert cloud.wanted(TRIAL) == {"gpu": 1}
        assert cloud.wanted({"CPU": 4, "GPU": 4}) == {"all-gpus": 1}
    finally:
        cloud.types = {name: before[name] for name in before if name not in ("gpu", "all-gpus")}


def test_the_roles_allow_what_is_done_and_little_else(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = cloud.launch(SPOT, monkeypatch)
    cloud.provider.non_terminated_nodes({})
    cloud.provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
    cloud.provider.terminate_nodes(cloud.provider.non_terminated_nodes({}))
    assert policies().keys() == {
        kind["node_config"]["IamInstanceProfile"]["Name"] for kind in cloud.types.values()
    }
    head, worker = (policies()[f"speedup-{role}"]["Statement"] for role in ("head", "worker"))
    ec2 = {action for part in head for action in part["Action"] if action.startswith("ec2:")}
    assert ec2 == cloud.calls, "Ray's provider needs these"
    passed = [part["Resource"] for part in head if "iam:PassRole" in part["Action"]]
    assert len(passed) == 1 and passed[0][0].endswith(":role/speedup-worker")
    assert {action for part in worker for action in part["Action"]} == {
        *("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
    }
    assert all(arn.startswith("arn:aws:s3:::BUCKET") for part in worker for arn in part["Resource"])


def test_the_machines_have_what_a_node_is_said_to_have(cloud: Cloud) -> None:
    """By moto's copy of EC2's list: enough CPUs, the same GPU, a disk for the cache."""
    gpu_types = [kind for name, kind in cloud.types.items() if name != "head"]
    described = [INSTANCE_TYPES[kind["node_config"]["InstanceType"]] for kind in gpu_types]
    resources = gpu_types[0]["resources"]
    assert min(machine["VCpuInfo"]["DefaultVCpus"] for machine in described) >= resources["CPU"]
    gpus = [machine["GpuInfo"]["Gpus"] for machine in described]
    assert {sum(gpu["Count"] for gpu in several) for several in gpus} == {resources["GPU"]}
    assert len({gpu["Name"] for several in gpus for gpu in several}) == 1
    assert all(machine["InstanceStorageInfo"]["NvmeSupport"] == "required" for machine in described)


def test_rays_second_autoscaler_does_not_notice() -> None:
    """Where this fails, the first one is no longer needed: `priority` says there what names say here."""
    monitor = CloudResourceMonitor()
    refused = InstanceUpdateEvent(instance_type=SPOT, new_instance_status=Instance.ALLOCATION_FAILED)
    monitor.notify([refused])
    assert not monitor.get_recoverable_resource_availabilities()
    came_not_up = InstanceUpdateEvent(instance_type=SPOT, new_instance_status=Instance.ALLOCATION_TIMEOUT)
    monitor.notify([came_not_up])
    assert Counter(monitor.get_recoverable_resource_availabilities()) == {SPOT: 0.0}
