"""Every node is asked, really; what is wrong is told by node, in words."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from outside_ray import plain_environment
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.scaling.check import NodeCheck, _compared, _try_storage, bus_bandwidth, check_nodes
from raytrain_speedup.settings import UserError

SOUND = NodeCheck(
    "a", 8, ("H100",), {"python": "3.11.7", "ray": "2.50", "torch": "2.12"}, clock_doubt=0.01, free_gb=100
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": SOUND.versions | {"torch": "2.11"}}, "torch 2.11, and 2.12 on the driver's node"),
        ({"clock": 1.5}, r"its clock is \+1\.5 s off"),
        ({"clock": -2.0}, r"its clock is -2\.0 s off"),
        ({"free_gb": 3.0}, r"3\.0 GB are free; expected 10"),
        ({"gpus": ("A10",)}, "1 x A10, and 1 x H100 on others"),
        ({"gpus": ("H100", "H100")}, "2 x H100, and 1 x H100 on others"),
    ],
)
def test_what_differs_from_the_drivers_node_is_a_fault(changes: dict, said: str) -> None:
    first, odd, third = _compared([SOUND, replace(SOUND, name="b", **changes), replace(SOUND, name="c")])
    assert first.faults == third.faults == ()
    (fault,) = odd.faults
    assert re.fullmatch(said, fault), fault


def test_what_is_no_fault() -> None:
    """A head without GPUs; a clock that nobody could ask fast enough; a fault that a node told itself stays."""
    checks = [
        replace(SOUND, gpus=()),
        SOUND,
        replace(SOUND, clock=3.0, clock_doubt=2.5),
        NodeCheck("gone", 8, faults=("it does not answer",)),
    ]
    assert [check.faults for check in _compared(checks)] == [(), (), (), ("it does not answer",)]


def test_storage_that_is_not_shared(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    with pytest.raises(OSError, match="what another node wrote is not there: it is not shared"):
        _try_storage(probe, "token")
    probe.mkdir()
    (probe / "token").write_text("another's")
    with pytest.raises(OSError, match="it is not shared"):
        _try_storage(probe, "token")
    (probe / "token").write_text("token")
    assert min(_try_storage(probe, "token")) > 0
    assert [path.name for path in probe.iterdir()] == ["token"]


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert bus_bandwidth(2, 10**9, 0.5) == pytest.approx(2.0)
    assert bus_bandwidth(8, 10**9, 0.5) == pytest.approx(3.5)


def test_a_node_that_does_not_answer(ray_session: None) -> None:
    (check,) = check_nodes(seconds=0.01)
    assert check.faults == ("it does not answer",) and check.cpus == 2


def test_the_command_asks_the_node_and_two_workers(ray_session: None, tmp_path: Path) -> None:
    arguments = ["cluster", "check", "--storage", str(tmp_path / "runs"), "--workers", "2"]
    found = CliRunner().invoke(app, arguments)
    written = " ".join(found.output.split())
    assert found.exit_code == 0, written
    assert "all-reduce of 64 MiB among 2 workers:" in written
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left there"
    (check,) = check_nodes(tmp_path / "runs")
    assert check.faults == () and check.write is not None and check.read is not None
    assert abs(check.clock) <= check.clock_doubt + 0.01, "it is the driver's own clock"
    assert check.versions is not None and "missing" not in check.versions.values()


def test_storage_that_cannot_be_written_is_a_line(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"--storage: .*file.*cannot be written"):
        check_nodes(tmp_path / "file")


TWO_NODES = """
import os, signal, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

storage, other = Path("runs").absolute(), Path("other").absolute()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True})
start = f"mount -t tmpfs none {storage} && exec {Path(sys.executable).with_name('ray')} start --block"
start += f" --address={cluster.address} --num-cpus=1"
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
path = {"PYTHONPATH": f"{other}:{os.environ['PYTHONPATH']}"}
node = subprocess.Popen(
    ["unshare", "--mount", "sh", "-c", start], env=os.environ | path, start_new_session=True, **quiet
)
ray.init(address=cluster.address, log_to_driver=False)
while len([one for one in ray.nodes() if one["Alive"]]) < 2:
    assert node.poll() is None
    time.sleep(0.1)
check = [sys.executable, "-m", "raytrain_speedup.cli", "cluster", "check", "--storage", str(storage)]
done = subprocess.run(check, env=os.environ | {"RAY_ADDRESS": cluster.address}, text=True, capture_output=True)
os.killpg(node.pid, signal.SIGTERM)
node.wait()
print(done.stdout, done.stderr)
print("exit", done.returncode, "left", len(list(storage.iterdir())))
"""


@pytest.mark.slow
def test_one_node_of_two_that_has_another_version_and_another_disk(tmp_path: Path) -> None:
    """Where the storage is, that node has a disk of its own, by a mount that nobody else sees."""
    (tmp_path / "runs").mkdir()
    known = tmp_path / "other" / "torchvision-0.1.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    unshared = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path / "runs")]
    tried = subprocess.run(unshared, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"needs leave to mount a file system of one's own: {tried.stderr.strip()}")
    found = subprocess.run(
        [sys.executable, "-c", TWO_NODES],
        capture_output=True,
        text=True,
        timeout=200,
        env=plain_environment() | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "400"},
        cwd=tmp_path,
    )
    told = found.stdout + found.stderr[-2000:]
    assert "exit 1 left 0" in found.stdout, told
    assert "1 of 2 nodes are not fit to train; see the last column" in found.stdout, told
    good, bad = [line for line in found.stdout.splitlines() if re.search(r"write|torchvision", line)]
    assert good.rstrip(" │|").endswith("good"), told
    assert "storage: what another node wrote is not there: it is not shared; torchvision 0.1, and " in bad, (
        told
    )
