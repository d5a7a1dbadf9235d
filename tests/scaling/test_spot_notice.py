"""The notice of a cloud, from a service on loopback that answers as those of EC2 and Google Cloud do, to Ray."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from metadata_service import serving
from outside_ray import plain_environment
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.scaling import spot_notice
from raytrain_speedup.scaling.manifests import DRAIN_SECONDS, kuberay, read_cluster
from raytrain_speedup.scaling.spot_notice import (
    EARLY_SECONDS,
    GOOGLE_SECONDS,
    Ec2,
    Google,
    Unanswered,
    drain,
    metadata_service,
    only_one,
    wait_for_notice,
    watch,
)
from raytrain_speedup.settings import UserError

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"
INSTANCE_ACTION = "/latest/meta-data/spot/instance-action"


@pytest.mark.parametrize(("cloud", "kind"), [("AWS", Ec2), ("Google Cloud", Google), ("none", None)])
def test_a_machine_knows_its_cloud(cloud: str, kind: type | None) -> None:
    with serving(cloud) as service:
        found = metadata_service(service.address, pause=0)
        assert type(found) is (kind or type(None))
    assert metadata_service("http://127.0.0.1:1", pause=0) is None


def test_ec2_says_when_and_is_asked_with_a_token(caplog: pytest.LogCaptureFixture) -> None:
    """A token that has expired is renewed; the recommendation to rebalance is nobody's business."""
    with serving("AWS") as service:
        machine = Ec2(service.address)
        assert machine.deadline() is None and machine.deadline() is None
        assert [ask[0] for ask in service.asked] == ["PUT", "GET", "GET"], "one token serves many questions"
        service.token = "secret-2"
        service.deadline = 1_900_000_000.0
        assert machine.deadline() == 1_900_000_000.0
        assert service.asked[3:] == [
            ("GET", INSTANCE_ACTION, 401),
            ("PUT", "/latest/api/token", 200),
            ("GET", INSTANCE_ACTION, 200),
        ]
        assert not any("rebalance" in path for _, path, _ in service.asked)


def test_google_says_that_and_has_half_a_minute() -> None:
    with serving("Google Cloud") as service:
        machine = Google(service.address)
        assert machine.deadline() is None
        service.deadline, before = time.time(), time.time()
        first = machine.deadline()
        assert first is not None and 0 <= first - before - GOOGLE_SECONDS < 1
        assert machine.deadline() == first, "it does not begin anew with every question"


def test_a_service_that_is_away_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with serving("AWS") as service:
        machine = metadata_service(service.address)
        assert machine is not None
        service.down = True
        machine._token = None  # type: ignore[attr-defined]

        def come_back() -> None:
            while len(service.asked) < 12:
                time.sleep(0.01)
            service.down, service.deadline = False, 1_900_000_000.0

        threading.Thread(target=come_back).start()
        assert wait_for_notice(machine, every=0.01) == 1_900_000_000.0
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 2 and "does not answer" in said[0] and "answers again" in said[1]


def test_what_ray_does_not_take_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def tell(deadline: float) -> list[str]:
        tries.append(deadline)
        if len(tries) < 4:
            raise UserError("away")
        return ["node"]

    with serving("AWS") as service:
        service.deadline = 1_900_000_000.0
        assert watch(Ec2(service.address), tell, every=0.01) == (1_900_000_000.0, ["node"])
    assert len(tries) == 4 and len(caplog.records) == 1


def test_what_is_no_notice_is_no_answer() -> None:
    class Odd(Ec2):
        def _ask(self, *question: object) -> tuple[int, dict, str]:  # type: ignore[override]
            return 200, {}, "hello"

    with pytest.raises(Unanswered, match="answered by 200 and 'hello'"):
        Odd("").deadline()


def test_one_watcher_a_machine(tmp_path: Path) -> None:
    with only_one(tmp_path / "lock") as first, only_one(tmp_path / "lock") as second:
        assert first and not second
    with only_one(tmp_path / "lock") as third:
        assert third


def test_off_the_cloud_it_says_so_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_notice.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(spot_notice.time, "sleep", lambda seconds: None)
    command = ["cluster", "watch", "--metadata", "http://127.0.0.1:1"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    assert ended.output == (
        "http://127.0.0.1:1: no metadata service of AWS or Google Cloud; nothing to watch\n"
    )
    with only_one():
        assert "another watcher runs" in CliRunner().invoke(app, command).output


def test_a_cluster_that_does_not_answer_is_a_line() -> None:
    with pytest.raises(UserError, match=r":1: .*[Cc]onnection refused"):
        drain(time.time() + 100, address="127.0.0.1:1")


DRAINED = """
import subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
node = cluster.add_node(num_cpus=1).node_id
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(num_cpus=1)
class Worker:
    def here(self):
        return ray.get_runtime_context().get_node_id()

    def trial(self):
        from raytrain_speedup.scaling.tune_trial import TrialReporter
        reporter = TrialReporter(Path("trial"))
        return reporter.watches, reporter.notice() and reporter.notice().deadline

worker = Worker.remote()
assert ray.get(worker.here.remote()) == node
print("trial", *ray.get(worker.trial.remote()))
watch = [sys.executable, "-m", "raytrain_speedup.cli", "cluster", "watch", "--metadata", sys.argv[1]]
subprocess.run([*watch, "--every", "0.1", "--node", node, "--address", cluster.address], check=True)
print("drains", {name == node: due for name, due in ray._private.state.state.get_draining_nodes().items()})
print("trial", *ray.get(worker.trial.remote()))
"""


@pytest.mark.slow
def test_ray_is_told_of_the_node_and_the_deadline(tmp_path: Path) -> None:
    """The whole way, by the command, on a cluster of two nodes; and so is a trial of one worker there."""
    with serving("AWS") as service:
        deadline = service.deadline = float(int(time.time()) + 100)
        done = subprocess.run(
            [sys.executable, "-c", DRAINED, service.address],
            env=plain_environment() | {"TMPDIR": "/tmp"},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
    assert f"drains {{True: {int(1000 * (deadline - EARLY_SECONDS))}}}" in done.stdout, done.stderr[-2000:]
    assert "trial True None\n" in done.stdout and f"trial True {deadline - EARLY_SECONDS}\n" in done.stdout
    assert "watching for the notice of AWS" in done.stdout and "taken back by AWS in" in done.stdout


EVICTED = """
import subprocess, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
start = f"ulimit -n 1024; ray start --address={cluster.address} --num-cpus=1 --block"
pod = subprocess.Popen(["bash", "-c", "--", start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    ray.init(address=cluster.address, log_to_driver=False)

    @ray.remote(num_cpus=1)
    class Worker:
        def notice(self):
            from raytrain_speedup.scaling.tune_trial import TrialReporter
            return TrialReporter(Path("trial")).notice()

    worker = Worker.remote()
    print("before:", ray.get(worker.notice.remote()))
    evicted = time.time()
    pod.terminate()
    while (notice := ray.get(worker.notice.remote())) is None:
        time.sleep(0.1)
    print("drained for:", round(notice.deadline - evicted), "s")
    ray.kill(worker)
    pod.wait(40)
    print("gone with the last of its workers")
finally:
    pod.kill()
"""


@pytest.mark.slow
def test_a_pod_that_is_evicted_drains_its_node(tmp_path: Path) -> None:
    """A GPU pod of `speedup cluster kuberay`, started as KubeRay starts one and told to end as Kubernetes does."""
    (kind, *_) = kuberay(read_cluster(CLUSTER), image="", memory_per_cpu=4)["spec"]["workerGroupSpecs"]
    (container,) = kind["template"]["spec"]["containers"]
    own = {variable["name"]: variable["value"] for variable in container["env"]}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", EVICTED],
        env=plain_environment() | {"TMPDIR": "/tmp", "PATH": path} | own,
        capture_output=True,
        text=True,
        timeout=150,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[-3:] == [
        *("before: None", f"drained for: {DRAIN_SECONDS} s", "gone with the last of its workers")
    ], done.stdout + done.stderr[-2000:]
