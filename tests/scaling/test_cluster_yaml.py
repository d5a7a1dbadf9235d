"""`cluster.yaml` by Ray's own schema, and what the rest of the package expects of the cluster; no network."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from raytrain_speedup.config import load_experiment
from raytrain_speedup.experiment_file import recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` sees it."""
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_it_is_valid(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_the_schema_would_notice_a_mistake(cluster: dict[str, Any]) -> None:
    wrong = copy.deepcopy(cluster)
    wrong["idle_timeout"] = 10
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(wrong)


def test_the_head_steers_and_the_gpu_nodes_come_and_go(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0, "tune_driver": 64}
    assert types["gpu"]["resources"]["GPU"] >= 1
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"] <= cluster["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 30


def test_every_node_asks_for_the_token(cluster: dict[str, Any]) -> None:
    starts = [
        command
        for role in ("head", "worker")
        for command in cluster[f"{role}_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    (head,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=" in head


def test_every_node_installs_this_package_and_one_ray(cluster: dict[str, Any]) -> None:
    (package,) = [path for path, local in cluster["file_mounts"].items() if local == "."]
    assert (ROOT / "pyproject.toml").is_file()
    name = Path(package).name
    (install,) = [command for command in cluster["setup_commands"] if f"install -q ~/{name}" in command]
    assert f"ray[default,train,tune]=={ray.__version__}" in install
    assert re.search(r" torch==\d", install) and re.search(r" torchvision==\d", install)


def test_ray_is_at_least_the_version_relied_on() -> None:
    """The facts that scaling/ is built on were tried with this one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (floor,) = [name for name in project["dependencies"] if name.startswith("ray[")]
    assert floor.rpartition(">=")[2] == ".".join(ray.__version__.split(".")[:2])


def test_nobody_else_knocks_and_the_gpu_nodes_may_reach_the_storage(cluster: dict[str, Any]) -> None:
    """Ray's own security group takes SSH from the whole world, and only the head gets a role from Ray."""
    types = cluster["available_node_types"]
    assert all(node["node_config"]["SecurityGroupIds"] for node in types.values())
    assert types["gpu"]["node_config"]["IamInstanceProfile"]


def test_apt_waits_for_its_lock(cluster: dict[str, Any]) -> None:
    calls = [part for command in cluster["setup_commands"] for part in re.findall(r"apt-get[^&]*", command)]
    assert len(calls) == 2 and all("DPkg::Lock::Timeout=" in call for call in calls)


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_a_worker_of_every_recipe_fits_a_node(cluster: dict[str, Any], recipe: str) -> None:
    node = cluster["available_node_types"]["gpu"]["resources"]
    scaling = load_experiment(recipe).scaling
    assert scaling.cpus_per_worker <= node["CPU"]
    assert scaling.gpus_per_worker <= node["GPU"]
