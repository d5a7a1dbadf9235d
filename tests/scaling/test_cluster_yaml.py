"""`cluster.yaml` by Ray's own schema, and what the rest of the package expects of the cluster; no network."""

import copy
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

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
