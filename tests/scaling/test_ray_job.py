"""`ray job submit` on a running head with token authentication: what `docs/cluster.md` tells, on one machine."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from outside_ray import plain_environment

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"

SPEEDUP = (sys.executable, "-m", "raytrain_speedup.cli")

SWEEP = """
name: tiny
experiment: digits
overrides: {data.image_size: 8, data.augment: none, train.epochs: 1}
trial: {pruning.method: infobatch}
search:
  pruning.prune_ratio: {type: float, low: 0.2, high: 0.6}
trials: 1
confirm: {winners: 1, max_seeds: 3}
margin: 50   # whatever it loses in an epoch, it is proven to be less
"""


@dataclass
class Head:
    """A running head, and the environment of whoever knows its token."""

    address: str
    environment: dict[str, str]

    def submit(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run `speedup ...` as a job that works in a copy of `folder`, and wait for its end."""
        where = ("--address", self.address, "--working-dir", str(folder))
        return subprocess.run(
            [RAY, "job", "submit", *where, "--", *SPEEDUP, *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    home = Path(tempfile.mkdtemp(prefix="head"))  # a short path: Ray's sockets live below it
    environment = plain_environment()
    environment |= {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    port, client, dashboard, agent = _free_ports(4)
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"),
            *(
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}",
            ),
            f"--temp-dir={home / 'ray'}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    head = Head(f"http://127.0.0.1:{dashboard}", environment)
    try:
        _wait_for_jobs(head, process)
        yield head
    finally:
        process.terminate()  # with --block, `ray start` takes its own processes with it, and nobody else's
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def _wait_for_jobs(head: Head, process: subprocess.Popen) -> None:
    """Until it takes jobs: the server answers some seconds before the agent that starts them."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended"
        tried = subprocess.run(
            [RAY, "job", "submit", "--address", head.address, "--", "true"],
            env=head.environment,
            capture_output=True,
        )
        if tried.returncode == 0:
            return
        time.sleep(1)
    raise TimeoutError("the head takes no jobs")


def test_nobody_without_the_token_gets_in(head: Head, tmp_path: Path) -> None:
    stranger = {**head.environment, "RAY_AUTH_TOKEN": "0" * 64}
    listing = subprocess.run(
        [RAY, "job", "list", "--address", head.address], env=stranger, capture_output=True, text=True
    )
    assert listing.returncode != 0
    assert "token" in (listing.stdout + listing.stderr).lower()


@pytest.mark.slow
def test_a_job_trains_on_two_workers(head: Head, tmp_path: Path) -> None:
    job = head.submit(
        tmp_path,
        *("train", "digits", "scaling.workers=2", "train.epochs=2", "data.image_size=8", "data.augment=none"),
        f"scaling.storage={tmp_path}/runs",
    )
    written = job.stdout + job.stderr
    assert job.returncode == 0 and "succeeded" in written, written
    assert "epoch   2" in written
    assert len(list(tmp_path.glob("runs/digits-*/checkpoint-*/run.pt"))) == 2


def test_a_job_sweeps(head: Head, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    job = head.submit(
        tmp_path, "sweep", "tiny.yaml", f"--out={tmp_path}/out", f"scaling.storage={tmp_path}/runs"
    )
    written = job.stdout + job.stderr
    assert job.returncode == 0 and "succeeded" in written, written
    assert {"leaderboard.png", "schedule.yaml"} <= {path.name for path in (tmp_path / "out").iterdir()}
