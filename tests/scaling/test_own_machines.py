"""`speedup cluster local`: machines of one's own, by Ray's provider `local`; once for real, over SSH."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from docs_commands import TINY_SWEEP, the_command
from fake_provider import free_ports
from outside_ray import plain_environment
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.schedule import load_schedule

ROOT = Path(__file__).parents[2]
HOME_OF_ROOT = Path("~root").expanduser()
DOCS = "docs/cluster.md"
SSHD = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin")
HEAD, NODE = "127.0.0.3", "127.0.0.2"  # Ray takes 127.0.0.1 for another address of the machine


def printed(*arguments: str) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["cluster", "local", *arguments, "--cluster", str(ROOT / "cluster.yaml")])
    assert found.exit_code == 0, found.output
    return yaml.safe_load(found.stdout)


def test_the_file_is_one_for_rays_provider_and_says_nothing_of_a_cloud() -> None:
    cluster = printed("10.0.0.1", "10.0.0.2", "10.0.0.3", "--user", "me")
    prepared = prepare_config(cluster)
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"], prepared["max_workers"]) == (2, 2, 2)
    assert cluster["auth"] == {"ssh_user": "me", "ssh_private_key": "~/.ssh/id_ed25519"}
    text = yaml.safe_dump(cluster)
    assert not re.search("ubuntu|s3:|aws|boto3|mkfs|cluster watch", text, re.IGNORECASE)
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert start.endswith("""--num-cpus=0 --num-gpus=0 --resources='{"tune_driver": 64}'""")
    assert "RAY_AUTH_MODE=token ray start" in start and "--dashboard-host=127.0.0.1" in start
    assert any("export MLFLOW_TRACKING_URI=" in command for command in cluster["head_setup_commands"])
    assert f"{HOME_OF_ROOT}/mlflow.db" in yaml.safe_dump(printed("a", "b", "--user", "root"))


@pytest.mark.parametrize("machines", [("a", "a"), ("a", "b", "b")])
def test_a_machine_is_named_once(machines: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, ["cluster", "local", *machines, "--cluster", str(ROOT / "cluster.yaml")])
    assert found.exit_code != 0
    assert f"machines: {', '.join(machines)} is not allowed" in str(found.exception) + found.output


STOP = """
import os, psutil
me = psutil.Process()
above = {me.pid, *(parent.pid for parent in me.parents())}
for process in psutil.process_iter():
    try:
        if process.pid not in above and process.environ().get("HOME") == os.environ["HOME"]:
            process.kill()
    except psutil.Error:
        pass
"""
"""`ray stop` of a machine of its own; the real one would end every Ray here."""

SSH = """
before=
for word; do
  shift
  case "$before $word" in "-i ~/"*) word="$HOME/${{word#??}}";; esac
  set -- "$@" "$word"
  before="$word"
done
exec /usr/bin/ssh -p {port} "$@"
"""
"""On a port of its own; the home is not the user's, where ssh would look for the key."""


class Machines:
    """A laptop, a head and a node: homes, commands, and an SSH server for each of the latter on loopback."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.laptop, self.head, self.node = (place / name for name in ("laptop", "head", "node"))
        self.ssh_port, self.gcs, self.dashboard, self.tunnel, self.client = free_ports(5)
        self.bin = place / "bin"
        self._servers: list[subprocess.Popen] = []

    @property
    def environment(self) -> dict[str, str]:
        return plain_environment() | {
            **{"HOME": str(self.laptop), "PATH": f"{self.bin}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            **{"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(self.laptop), "COLUMNS": "200"},
        }

    def set_up(self) -> None:
        for home in (self.laptop, self.head, self.node):
            (home / ".ssh").mkdir(parents=True)
            (home / "venv").mkdir()
            (home / "venv" / "bin").symlink_to(self.bin)
            (home / ".bashrc").write_text("cd\n")  # sshd begins in the user's home, of which there is one
        self.bin.mkdir()
        (self.place / "stop.py").write_text(STOP)
        python = sys.executable
        ray = f'[ "$1" != stop ] || exec {python} {self.place}/stop.py; exec {python} -m ray.scripts.scripts "$@"'
        programs = {"ray": ray, "speedup": f'exec {python} -m raytrain_speedup.cli "$@"'}
        programs["ssh"] = SSH.format(port=self.ssh_port)
        for name, text in programs.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)
        for key in (self.laptop / ".ssh" / "key", self.place / "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to be started by root
        for address, home in ((HEAD, self.head), (NODE, self.node)):
            told = {"HOME": home, "RAY_TMPDIR": home, "PYTHONPATH": home / "raytrain_speedup"}
            told |= {"OMP_NUM_THREADS": 1, "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_worker_niceness": 0}
            config = home / "sshd_config"
            config.write_text(
                f"Port {self.ssh_port}\nListenAddress {address}\nHostKey {self.place}/host\nPidFile none\n"
                f"AuthorizedKeysFile {self.laptop}/.ssh/key.pub\nStrictModes no\nUsePAM no\n"
                "PasswordAuthentication no\nMaxStartups 100\n"
                f"SetEnv {' '.join(f'{name}={value}' for name, value in told.items())}\n"
            )
            assert SSHD is not None
            self._servers.append(subprocess.Popen([SSHD, "-D", "-f", config, "-E", home / "sshd.log"]))

    def cluster(self) -> Path:
        """What the command prints, on ports of its own, without what installs and without leave for sudo."""
        cluster = printed(HEAD, NODE, "--user", "root", "--key", str(self.laptop / ".ssh" / "key"))
        cluster["cluster_name"] = f"own-{self.place.name}"
        cluster["setup_commands"] = [
            command for command in cluster["setup_commands"] if not re.search("sudo|pip|m venv", command)
        ]
        text = (
            yaml.safe_dump(cluster, width=10_000)
            .replace(f"{HOME_OF_ROOT}/", "~/")
            .replace("sqlite:///~", "sqlite:///$HOME")
        )
        text = text.replace("--port=6379", f"--port={self.gcs} --node-ip-address={HEAD}")
        text = text.replace(
            "$RAY_HEAD_IP:6379",
            f"$RAY_HEAD_IP:{self.gcs} --node-ip-address={NODE} --num-cpus=2 --temp-dir=$HOME/ray",
        )
        text = text.replace("--object-manager-port=8076", "--disable-usage-stats")
        ports = f"--dashboard-port={self.dashboard} --ray-client-server-port={self.client}"
        text = text.replace("--dashboard-host=", f"{ports} --dashboard-agent-listen-port=0 --dashboard-host=")
        (self.laptop / "local.yaml").write_text(text)
        return self.laptop / "local.yaml"

    def told(self, command: str, folder: Path) -> str:
        """Type a command of the docs at the laptop."""
        command = command.replace("cluster.yaml", str(self.laptop / "local.yaml"))
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def running(self) -> list[psutil.Process]:
        """What runs on the head and the node."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") in (str(self.head), str(self.node)):
                    found.append(process)
        return found

    def end(self) -> None:
        for process in self.running():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for server in self._servers:
            server.kill()
            server.wait()


@pytest.fixture
def machines() -> Iterator[Machines]:
    if SSHD is None or shutil.which("rsync") is None:
        pytest.skip("needs sshd and rsync")
    machines = Machines(Path(tempfile.mkdtemp(prefix="om")))  # a short path: Ray's sockets live below it
    try:
        machines.set_up()
        yield machines
    finally:
        machines.end()
        shutil.rmtree(machines.place, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_up_a_sweep_its_results_and_down_over_ssh(machines: Machines) -> None:
    """By the docs' own commands. The head's and the node's SSH end in homes of their own on this machine."""
    file, laptop = machines.cluster(), machines.laptop
    ssh = f"ssh -i {laptop}/.ssh/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@{NODE}"
    deadline = time.monotonic() + 20
    while subprocess.run(
        ["bash", "-c", f"{ssh} true"], env=machines.environment, capture_output=True
    ).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (
        machines.told(f"{ssh} 'PATH=$HOME/venv/bin:$PATH; command -v ray'", laptop)
        .strip()
        .startswith(str(machines.node))
    ), "any other `ray stop` would end every Ray on this machine"
    machines.told(the_command(DOCS, "ray get-auth-token").partition("#")[0], laptop)
    machines.told(the_command(DOCS, "ray up cluster.yaml").partition("#")[0] + " -y", ROOT)
    (laptop / "own.yaml").write_text(TINY_SWEEP.replace("tiny", "own"))
    dashboard = the_command(DOCS, "ray dashboard").partition("&")[0]
    ports = f"--port {machines.tunnel} --remote-port {machines.dashboard}"
    tunnel = subprocess.Popen(
        ["bash", "-c", f"exec {dashboard.replace('cluster.yaml', f'{file} {ports}')}"],
        env=machines.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{machines.tunnel}"
        for _ in range(60):
            time.sleep(1)
            with contextlib.suppress(AssertionError):
                machines.told(f"ray job submit --address {address} -- true", laptop)
                break
        sweep = f"speedup sweep own.yaml --out $HOME/results scaling.storage={machines.place}/runs"
        (laptop / "job").mkdir()
        (laptop / "own.yaml").rename(laptop / "job" / "own.yaml")
        said = machines.told(f"ray job submit --address {address} --working-dir job -- {sweep}", laptop)
        assert "succeeded" in said, said
    finally:
        tunnel.kill()
        tunnel.wait()
    board = machines.told(the_command(DOCS, "speedup leaderboard'"), laptop)
    plain = re.sub(r"\x1b\[[\d;]*m", "", board)  # a terminal's colours and 80 columns, by `ssh -tt`
    run = re.search(r"infobatch .*\blossless +(\w{8})", plain)
    assert run is not None, board
    machines.told(the_command(DOCS, "ray exec", "speedup export").replace("RUN", run[1]), laptop)
    machines.told(the_command(DOCS, "ray rsync-down").replace("/home/ubuntu", str(machines.head)), laptop)
    assert load_schedule(laptop / "schedule.yaml").proven
    machines.told("ray down cluster.yaml -y", laptop)
    deadline = time.monotonic() + 120  # the node's ends by itself, when it has missed the head for a minute
    while any("raylet" in process.name() for process in machines.running()):
        assert time.monotonic() < deadline
        time.sleep(1)
