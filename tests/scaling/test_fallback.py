"""A head as `cluster.yaml` starts it, with a cloud that has no spot nodes: what is asked for, and what comes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_provider import environment, fake_cluster

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())

NO_SPOT = """
from pathlib import Path
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

class Provider(FakeMultiNodeProvider):
    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        with Path({log!r}).open("a") as log:
            log.write(tags["ray-user-node-type"] + "\\n")
        if "InstanceMarketOptions" in node_config:
            raise NodeLaunchException("InsufficientInstanceCapacity", "none", None)
        return super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
"""
TRIAL = """
import ray

@ray.remote(num_gpus=1)
def trial():
    return "trained"

ray.init(log_to_driver=False)
print(ray.get(trial.remote(), timeout=200))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fb"))  # a short path: Ray's sockets live below it
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trial_runs_where_there_are_no_spot_nodes(home: Path) -> None:
    (home / "no_spot.py").write_text(NO_SPOT.format(log=str(home / "asked")))
    kinds = {
        name: {**kind, "resources": {"CPU": 1, "GPU": 1}}
        for name, kind in CLUSTER["available_node_types"].items()
        if name != CLUSTER["head_node_type"]
    }
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    said = dict(re.findall(r"(RAY_\w+)=(\S+) ", start.partition("ray start")[0]))
    path = {"PYTHONPATH": f"{ROOT}:{home}"}
    # `ray up` exports the second autoscaler before the command
    variables = {"RAY_enable_autoscaler_v2": "1"} | path | said
    provider = {"type": "external", "module": "no_spot.Provider", "head_resources": {}}
    with fake_cluster(home, kinds, provider=provider, variables=variables) as address:
        asked = environment(home) | path | {"RAY_ADDRESS": address}
        for _ in range(3):  # until the head is there
            done = subprocess.run([sys.executable, "-c", TRIAL], env=asked, capture_output=True, text=True)
            if done.returncode == 0:
                break
    assert done.stdout.strip() == "trained", done.stderr[-2000:]
    assert (home / "asked").read_text().split() == ["gpu-1-spot", "gpu-2-spot-larger", "gpu-3-on-demand"]
