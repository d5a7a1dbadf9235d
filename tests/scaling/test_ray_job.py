"""`ray job submit` on a running head with token authentication: what `docs/cluster.md` tells, on one machine."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
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
import yaml
from docs_commands import TINY_SWEEP, the_command
from fake_provider import autoscaling_config, free_ports
from loopback_s3 import LoopbackS3
from outside_ray import plain_environment
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.command_runner import _with_interactive

from raytrain_speedup.data.index.shards import open_index
from raytrain_speedup.schedule import load_schedule

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
DOCS = "docs/cluster.md"
RAY = Path(sys.executable).parent / "ray"

SPEEDUP = (sys.executable, "-m", "raytrain_speedup.cli")


OWN_FOLDER = """
from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider as Provider

params = parameter.RayParams
parameter.RayParams = lambda **known: params(**known, temp_dir={folder!r})
"""
"""Ray's fake provider, whose node has a folder that is not the head's: the one that starts last else empties the
working directories of the jobs there."""


@dataclass
class Head:
    """What `ray up cluster.yaml` makes of a machine, with a home of its own for /home/ubuntu: a head whose
    autoscaler starts the file's GPU nodes, here as processes."""

    home: Path
    ports: list[int]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}"

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever knows its token: the machine that one sits at, and the head before it read its `.bashrc`."""
        venv = self.home / "venv" / "bin"
        return plain_environment() | {
            **{"HOME": str(self.home), "PATH": f"{venv}:{os.environ['PATH']}"},
            "PYTHONPATH": f"{ROOT}:{self.home}",
            **{"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        }

    def set_up(self) -> None:
        """A virtual environment that has `ray` and `speedup`, and what the file writes to `.bashrc`."""
        venv = self.home / "venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "ray").symlink_to(RAY)
        (venv / "speedup").write_text(f'#!/bin/sh\nexec {shlex.join(SPEEDUP)} "$@"\n')
        (venv / "speedup").chmod(0o755)
        (self.home / ".bashrc").touch()
        commands = [*CLUSTER["setup_commands"], *CLUSTER["head_setup_commands"]]
        for command in (command for command in commands if ".bashrc" in command):
            subprocess.run(["bash", "-c", self.here(command)], env=self.environment, check=True)
        kinds = {
            name: {**kind, "max_workers": 1}
            for name, kind in CLUSTER["available_node_types"].items()
            if name != CLUSTER["head_node_type"]
        }
        (self.home / "own_folder.py").write_text(OWN_FOLDER.format(folder=f"{self.home}/node"))
        provider = {"type": "external", "module": "own_folder.Provider", "head_resources": {}}
        config = autoscaling_config(f"{get_node_ip_address()}:{self.ports[0]}", kinds, provider)
        (self.home / "ray_bootstrap_config.yaml").write_text(json.dumps(config | {"max_workers": 1}))

    def here(self, command: str) -> str:
        return command.replace("/home/ubuntu", str(self.home))

    def start(self) -> None:
        """By the file's own command, on ports of its own; waits until it takes jobs."""
        port, client, dashboard, agent = self.ports
        (command,) = [line for line in CLUSTER["head_start_ray_commands"] if "ray start" in line]
        own = {"--port=6379": f"--port={port}", "--object-manager-port=8076": ""}
        for said, instead in own.items():
            assert said in command
            command = command.replace(said, instead)
        command += f" --node-ip-address={get_node_ip_address()} --ray-client-server-port={client}"
        command += f" --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
        command += f" --temp-dir={self.home}/ray --disable-usage-stats"
        # `ray up` says by a variable, which nodes would inherit here, what the head has
        resources = dict(CLUSTER["available_node_types"]["head"]["resources"])
        command += f" --num-cpus={resources.pop('CPU')} --resources={shlex.quote(json.dumps(resources))}"
        told = {"RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1", "RAY_worker_niceness": "0"}
        told |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10"}
        subprocess.run(
            ["bash", "-c", f"source ~/.bashrc; {command}"],
            env=self.environment | told,
            cwd=self.home,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            timeout=120,
        )
        _wait_for_jobs(self)

    def lose(self) -> None:
        """The machine is gone, and its nodes are: no process of it hears of it, and nobody else's is touched."""
        for _ in range(2):  # what one of them has started meanwhile too
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if process.environ().get("HOME") == str(self.home):
                        process.kill()

    def exec(self, command: str) -> str:
        """What `ray exec cluster.yaml COMMAND` runs on the head, and what it writes."""
        return self._said(" ".join(_with_interactive(command)), self.home)

    def told(self, command: str, folder: Path) -> str:
        """Type a command at the machine that one sits at."""
        return self._said(command, folder)

    def _said(self, command: str, folder: Path) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            env=self.environment | {"COLUMNS": "200"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=280,
            start_new_session=True,  # an interactive shell else takes the terminal
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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
    head = Head(
        Path(tempfile.mkdtemp(prefix="head")), free_ports(4)
    )  # a short path: Ray's sockets live below it
    try:
        head.set_up()
        head.told(the_command(DOCS, "ray get-auth-token").partition("#")[0], head.home)
        head.start()
        yield head
    finally:
        head.lose()
        shutil.rmtree(head.home, ignore_errors=True)


def _wait_for_jobs(head: Head) -> None:
    """Until it takes jobs: the server answers some seconds before the agent that starts them."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
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


def test_a_sweep_by_the_docs_own_commands(head: Head, tmp_path: Path) -> None:
    """Submitted, followed, ranked, exported, used; the trials' node has a GPU by its type's word alone."""
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "infobatch-cifar10.yaml").write_text(TINY_SWEEP)

    def here(*words: str) -> str:
        told = the_command(DOCS, *words).replace("http://127.0.0.1:8265", head.address)
        return head.here(told).replace("s3://BUCKET/runs", f"{head.home}/runs")

    submitted = head.told(here("ray job submit", "speedup sweep"), tmp_path)
    (job,) = set(re.findall(r"raysubmit_\w+", submitted))
    log = head.told(here("ray job logs").replace("JOB", job), tmp_path)
    assert "succeeded" in log, log
    assert re.search(rf"{job}.*?SUCCEEDED", head.told(here("ray job list"), tmp_path), re.DOTALL)
    assert {"leaderboard.png", "schedule.yaml"} <= {path.name for path in (head.home / "results").iterdir()}

    def on_the_head(*words: str) -> str:
        ray, way, file, command = shlex.split(here(*words))
        assert (ray, way, file) == ("ray", "exec", "cluster.yaml")
        return command

    board = head.exec(on_the_head("speedup leaderboard'"))
    run = re.search(r"infobatch prune_ratio=.*\blossless +(\w{8})", board)
    assert run is not None, board
    head.exec(on_the_head("speedup export").replace("RUN", run[1]))
    _, _, _, source, _ = shlex.split(here("ray rsync-down"))
    used(Path(source))


def used(file: Path) -> None:
    """A loop of one's own trains by it."""
    schedule = load_schedule(file)
    assert schedule.proven
    pruner = schedule.pruner(1_000, epochs=10)
    shown = 0
    for epoch in range(10):
        for index, _ in pruner.plan(epoch).batches(64):
            pruner.observe(index, torch.rand(len(index)))
            shown += len(index)
    assert 0.4 * 10_000 < shown < 0.95 * 10_000


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
