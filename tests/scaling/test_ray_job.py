"""`ray job submit` on a running head with token authentication: what `docs/cluster.md` tells, on one machine."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from loopback_s3 import LoopbackS3
from outside_ray import plain_environment

from raytrain_speedup.data.shards import open_index

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
    """A head, and the environment of whoever knows its token."""

    home: Path
    environment: dict[str, str]
    ports: list[int]
    process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}"

    def start(self) -> None:
        """Start it, and wait until it takes jobs."""
        port, client, dashboard, agent = self.ports
        command = [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.home / 'ray'}"),
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=self.environment, start_new_session=True, **quiet)
        _wait_for_jobs(self, self.process)

    def stop(self) -> None:
        """End it as `ray stop` would: with --block, `ray start` takes its own processes with it, and nobody
        else's."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def lose(self) -> None:
        """The machine is gone: no process of it hears of it."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.home):
                    process.kill()
        assert self.process is not None
        self.process.wait()

    def submitting(self, folder: Path, *command: str) -> list[str]:
        """The command line that runs `speedup ...` as a job, in a copy of `folder`."""
        where = ("--address", self.address, "--working-dir", str(folder))
        return [str(RAY), "job", "submit", *where, "--", *SPEEDUP, *command]

    def submit(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run it, and wait for its end."""
        return subprocess.run(
            self.submitting(folder, *command),
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
    head = Head(home, environment, _free_ports(4))
    try:
        head.start()
        yield head
    finally:
        head.stop()
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
def test_a_command_with_another_token_is_refused_in_a_line(head: Head, tmp_path: Path) -> None:
    address = f"127.0.0.1:{head.ports[0]}"
    stranger = {**head.environment, "RAY_AUTH_TOKEN": "0" * 64, "RAY_ADDRESS": address, "COLUMNS": "300"}
    train = ("train", "digits", "scaling.workers=2", f"scaling.storage={tmp_path}/runs")
    refused = subprocess.run([*SPEEDUP, *train], env=stranger, capture_output=True, text=True, cwd=tmp_path)
    written = refused.stdout + refused.stderr
    assert refused.returncode == 2 and "Traceback" not in written
    assert f"RAY_ADDRESS={address}: the cluster there refuses the token of this command" in written


def test_a_job_sweeps(head: Head, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    job = head.submit(
        tmp_path, "sweep", "tiny.yaml", f"--out={tmp_path}/out", f"scaling.storage={tmp_path}/runs"
    )
    written = job.stdout + job.stderr
    assert job.returncode == 0 and "succeeded" in written, written
    assert {"leaderboard.png", "schedule.yaml"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_jobs_index_a_bucket_and_check_it_by_tasks(head: Head, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for name, content in ((f"{number}.png", b"image" * 200), (f"{number}.cls", b"%d" % number)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    with LoopbackS3().running() as s3:
        uri = s3.put_folder(folder, "shards")
        # Ray's tasks have the environment of their node, which a cluster's role would give them.
        known = {"env_vars": {key: os.environ[key] for key in os.environ if key.startswith("AWS_")}}
        where = ("--address", head.address, "--runtime-env-json", json.dumps(known))
        for command, said in (
            (("index", uri, "-o", f"{tmp_path}/index"), "3 samples of 3 classes in 3 files"),
            (("check", f"{tmp_path}/index"), "3 of 3 samples are left out"),
        ):
            job = subprocess.run(
                [RAY, "job", "submit", *where, "--", *SPEEDUP, "data", *command],
                env=head.environment,
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert job.returncode == 0 and said in job.stdout, job.stdout + job.stderr
    assert open_index(tmp_path / "index").class_names == ("0", "1", "2")


@pytest.mark.slow
def test_a_job_of_two_workers_goes_on_when_the_head_was_lost(head: Head, tmp_path: Path) -> None:
    """Its machine goes down, with the job, the workers and all that Ray knew, and comes up again. The job that
    resumes ends with the weights of one that nothing happened to."""
    runs = tmp_path / "runs"
    settings = ("data.image_size=8", "data.augment=none", "train.epochs=8", "scaling.workers=2")
    train = ("train", "digits", *settings, f"--tracking-uri=json:{tmp_path}/tracked")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    jobs = tmp_path / "job"
    jobs.mkdir()
    waiting = subprocess.Popen(
        head.submitting(jobs, *train, f"scaling.storage={runs}"), env=head.environment, **quiet
    )
    try:
        deadline = time.monotonic() + 280
        while not list(runs.glob("digits-*/checkpoint-*2/manifest.json")):
            assert time.monotonic() < deadline and waiting.poll() is None
            time.sleep(0.05)
        head.lose()
    finally:
        waiting.kill()
        waiting.wait()
    (folder,) = runs.glob("digits-*")
    assert not list(folder.glob("checkpoint-*/model.pt")), "it was not at its end"

    head.start()
    ends = []
    again = tmp_path / "again"
    for place, begun in ((folder, f"--resume={folder}"), (again, f"scaling.storage={again}")):
        job = head.submit(jobs, *train, begun)
        written = job.stdout + job.stderr
        assert job.returncode == 0 and "succeeded" in written and "epoch   8" in written, written
        assert ("epoch   1" in written) == (place == again), "what a checkpoint holds is not trained again"
        (end,) = place.glob("**/model.pt")
        ends.append(torch.load(end, weights_only=True))
    went_on, whole = ends
    for name, tensor in whole.items():
        assert torch.equal(went_on[name], tensor), name
