"""`cluster.yaml` by Ray's own schema, and what the rest of the package expects of the cluster; no network."""

import copy
import math
import os
import re
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from ray.autoscaler._private.loader import load_function_or_class
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.config import ScalingSettings, load_experiment
from raytrain_speedup.experiment_file import recipes
from raytrain_speedup.scaling.node_choice import score_node_type

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` sees it."""
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def gpu_types(cluster: dict[str, Any]) -> dict[str, Any]:
    """In the order in which they are tried."""
    return {name: kind for name, kind in sorted(cluster["available_node_types"].items()) if name != "head"}


def test_it_is_valid(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_the_schema_would_notice_a_mistake(cluster: dict[str, Any]) -> None:
    wrong = copy.deepcopy(cluster)
    wrong["idle_timeout"] = 10
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(wrong)


def test_the_head_steers_and_the_gpu_nodes_come_and_go(
    cluster: dict[str, Any], gpu_types: dict[str, Any]
) -> None:
    head = cluster["available_node_types"]["head"]
    assert cluster["head_node_type"] == "head" and cluster["available_node_types"].keys() == {
        "head",
        *gpu_types,
    }
    assert head["resources"] == {"CPU": 0, "tune_driver": 64} and head["max_workers"] == 0
    for kind in gpu_types.values():
        assert kind["resources"]["GPU"] >= 1
        assert kind["min_workers"] == 0 < kind["max_workers"] <= cluster["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 30


def test_gpu_nodes_are_equal_to_a_trial_and_the_last_ones_stay(gpu_types: dict[str, Any]) -> None:
    """Ray chooses freely among equal resources; `scaling/node_choice.py` by name."""
    configs = [kind["node_config"] for kind in gpu_types.values()]
    assert len({str(kind["resources"]) for kind in gpu_types.values()}) == 1 < len(gpu_types)
    assert ["InstanceMarketOptions" in config for config in configs] == [True] * (len(configs) - 1) + [False]
    asked = [(config["InstanceType"], "InstanceMarketOptions" in config) for config in configs]
    assert len(set(asked)) == len(asked), "each is another pool of machines"


def test_spot_nodes_have_a_price_that_somebody_has_to_think_of(gpu_types: dict[str, Any]) -> None:
    for kind in gpu_types.values():
        if market := kind["node_config"].get("InstanceMarketOptions"):
            assert market == {"MarketType": "spot", "SpotOptions": {"MaxPrice": "CHANGE-ME"}}


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


def test_the_autoscaler_is_the_one_that_falls_back(cluster: dict[str, Any]) -> None:
    """`ray up` puts RAY_enable_autoscaler_v2=1 before the command; what stands at `ray start` itself wins."""
    (head,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    said = dict(re.findall(r"(RAY_\w+)=(\S+) ", head.partition("ray start")[0]))
    assert said["RAY_enable_autoscaler_v2"] == "0"
    assert load_function_or_class(said["RAY_AUTOSCALER_UTILIZATION_SCORER"]) is score_node_type


def test_a_gpu_node_watches_for_the_clouds_notice(cluster: dict[str, Any], tmp_path: Path) -> None:
    """The command as a shell runs it, with another program in its place: in a session that outlives the shell's,
    with the token, after Ray is there; the command line is one that `speedup` takes."""
    *_, start, watch = cluster["worker_start_ray_commands"]
    assert "ray start" in start
    program = tmp_path / "venv" / "bin" / "speedup"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@" $RAY_AUTH_MODE; test -t 0 && echo tty; ps -o sid= -p $$\n')
    program.chmod(0o755)
    shell = f"{watch}\nps -o sid= -p $$"
    done = subprocess.run(
        ["bash", "-c", shell], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True
    )
    for _ in range(200):
        written = (tmp_path / "watch.log").read_text().split()
        if len(written) == 4:
            break
        time.sleep(0.05)
    assert written[:3] == ["cluster", "watch", "token"] and written[3] != done.stdout.decode().strip()
    assert CliRunner().invoke(app, [*written[:2], "--help"]).exit_code == 0
    assert not any("watch" in command for command in cluster["head_start_ray_commands"])


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    pinned = dict(re.findall(r" ([\w-]+)==([\d.]+)", install))
    # what crosses from node to node, or decides on what a step does
    assert pinned.keys() >= {
        "torch",
        "torchvision",
        "numpy",
        "pyarrow",
        "timm",
        "mlflow",
        "optuna",
        "pydantic",
    }
    assert all(version in floors[name] for name, version in pinned.items() if name in floors)


def test_ray_is_at_least_the_version_relied_on() -> None:
    """The facts that scaling/ is built on were tried with this one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (floor,) = [name for name in project["dependencies"] if name.startswith("ray[")]
    assert floor.rpartition(">=")[2] == ".".join(ray.__version__.split(".")[:2])


def test_nobody_else_knocks_and_every_node_may_reach_the_storage(
    cluster: dict[str, Any], gpu_types: dict[str, Any]
) -> None:
    """Ray's own security group takes SSH from the whole world, and only the head gets a role from Ray."""
    types = cluster["available_node_types"]
    assert all(node["node_config"]["SecurityGroupIds"] for node in types.values())
    roles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in types.items()}
    assert roles == {"head": "speedup-head", **dict.fromkeys(gpu_types, "speedup-worker")}
    region = cluster["provider"]["region"]
    assert any(f"AWS_REGION={region}'" in command for command in cluster["setup_commands"]), "obstore asks"
    zones = cluster["provider"]["availability_zone"].split(",")
    assert len(set(zones)) == len(zones) > 1 and all(zone[:-1] == region for zone in zones)


def test_the_database_is_fetched_before_it_is_kept(cluster: dict[str, Any]) -> None:
    """And a failure ends `ray up`: what is there is not overwritten by an empty one."""
    calls = [command for command in cluster["head_setup_commands"] if "speedup cluster " in command]
    fetch, keep = calls
    assert re.fullmatch(r"~/venv/bin/speedup cluster restore (\S+) .*", fetch) and "||" not in fetch + keep
    assert re.search(r"restore (\S+)", fetch)[1] == re.search(r"backup (\S+)", keep)[1]  # type: ignore[index]
    (tracking,) = {uri for call in calls for uri in re.findall(r"--tracking-uri (\S+)", call)}
    exported = [command for command in cluster["head_setup_commands"] if "export MLFLOW_" in command]
    assert f"export MLFLOW_TRACKING_URI={tracking}'" in exported[0]
    line = re.search(r"echo '(.*)' \| sudo tee /etc/cron\.d/speedup", keep)
    assert line is not None and re.match(
        r"\*/10( \*){4} ubuntu ~/venv/bin/speedup cluster backup s3://", line[1]
    )
    assert "%" not in line[1], "the end of a line to cron"


def test_apt_waits_for_its_lock(cluster: dict[str, Any]) -> None:
    calls = [part for command in cluster["setup_commands"] for part in re.findall(r"apt-get[^&]*", command)]
    assert len(calls) == 2 and all("DPkg::Lock::Timeout=" in call for call in calls)


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_a_worker_of_every_recipe_fits_a_node(gpu_types: dict[str, Any], recipe: str) -> None:
    scaling = load_experiment(recipe).scaling
    for kind in gpu_types.values():
        assert scaling.cpus_per_worker <= kind["resources"]["CPU"]
        assert scaling.gpus_per_worker <= kind["resources"]["GPU"]


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_all_workers_of_a_recipe_find_nodes_or_it_says_how_many(cluster: dict[str, Any], recipe: str) -> None:
    """With as many nodes as it says, or on fewer workers by what it says, a run of it could start."""
    experiment = load_experiment(recipe)
    node = cluster["available_node_types"]["gpu-1-spot"]
    nodes = _nodes(experiment.scaling, node["resources"])
    if nodes <= min(cluster["max_workers"], node["max_workers"]):
        return
    said = re.search(
        r"max_workers: (\d+) in cluster\.yaml; or (.*), the same batch", recipes()[recipe].read_text()
    )
    assert said is not None and int(said[1]) == nodes
    overrides = {key: int(value) for key, value in (word.split("=") for word in said[2].split())}
    smaller = load_experiment(recipe, overrides)
    assert _nodes(smaller.scaling, node["resources"]) <= cluster["max_workers"]
    assert smaller.train.batch_size == experiment.train.batch_size
    each = [x.train.batch_size / x.scaling.most_workers / x.train.accumulate for x in (smaller, experiment)]
    assert each[0] <= each[1], "it fits into a GPU as before"


def _nodes(scaling: ScalingSettings, node: dict[str, float]) -> int:
    """That all of its workers take."""
    asked = {"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}
    fit = min(int(node[name] // each) for name, each in asked.items() if each)
    return math.ceil(scaling.most_workers / fit)


def test_a_placement_group_is_one_comment_away(cluster: dict[str, Any]) -> None:
    """Where somebody takes the comment mark away, all GPU nodes are asked for there, and the file is valid."""
    text = (ROOT / "cluster.yaml").read_text()
    assert "# Placement: {GroupName: speedup}" in text
    placed = prepare_config(yaml.safe_load(text.replace("# Placement:", "Placement:")))
    validate_config(placed)
    nodes = {
        name: kind["node_config"].get("Placement") for name, kind in placed["available_node_types"].items()
    }
    assert nodes.pop("head") is None and list(nodes.values()) == [{"GroupName": "speedup"}] * 3
    assert "aws ec2 create-placement-group --group-name speedup --strategy cluster" in text
