"""The set-up of a node's own disk in `cluster.yaml`, as Ray runs it: on files, not disks; nothing is mounted."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMANDS = yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"]
(DISK,) = [command for command in COMMANDS if "/mnt/nvme" in command]
ROOT_DISK = "{0}/root-disk Amazon Elastic Block Store\n"
OWN_DISK = (
    "{0}/own-disk   Amazon EC2 NVMe Instance Storage\n{0}/second-disk Amazon EC2 NVMe Instance Storage\n"
)

FAKES = {
    "sudo": 'exec "$@"',
    "lsblk": 'test "$*" = "-dpno NAME,MODEL" && cat "$HOME/disks"',
    "mountpoint": 'test "$*" = "-q /mnt/nvme" && test -e "$HOME/mounted"',
    **{name: f'echo {name} "$@" >> "$HOME/done"' for name in ("mkdir", "chown")},
    "mount": 'echo mount "$@" >> "$HOME/done"; touch "$HOME/mounted"',
}


class Node:
    """A home with disks, and the commands above in front of the real ones (blkid, mkfs.ext4, awk)."""

    def __init__(self, home: Path, disks: str) -> None:
        self.home = home
        (home / "disks").write_text(disks.format(home))
        (home / "bin").mkdir()
        for name, text in FAKES.items():
            (home / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (home / "bin" / name).chmod(0o755)
        for disk in ("root-disk", "own-disk", "second-disk"):
            with (home / disk).open("wb") as file:
                file.truncate(4 << 20)

    def set_up(self) -> list[str]:
        """What was done that needs a root; Ray's `SSHCommandRunner` puts a command so."""
        (self.home / "done").write_text("")
        whole = f"true && export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({DISK})"
        path = f"{self.home / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"
        subprocess.run(
            ["sh", "-c", f"bash -c {shlex.quote(whole)}"],
            env={"HOME": str(self.home), "PATH": path},
            check=True,
            capture_output=True,
            timeout=30,
        )
        return (self.home / "done").read_text().splitlines()

    def empty(self, disk: str) -> bool:
        return not any((self.home / disk).read_bytes())


ALWAYS = ["mkdir -p /mnt/nvme", "chown ubuntu /mnt/nvme"]
needs_mkfs = pytest.mark.skipif(
    shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None, reason="needs e2fsprogs"
)


@pytest.mark.parametrize("disks", [ROOT_DISK, ""])
def test_a_node_without_such_a_disk_has_a_folder(disks: str, tmp_path: Path) -> None:
    node = Node(tmp_path, disks)
    assert node.set_up() == ALWAYS
    assert node.empty("root-disk") and node.empty("own-disk")


@needs_mkfs
def test_the_disk_is_formatted_once_and_mounted_again(tmp_path: Path) -> None:
    node = Node(tmp_path, ROOT_DISK + OWN_DISK)
    mounting = [ALWAYS[0], f"mount -o noatime {tmp_path}/own-disk /mnt/nvme", ALWAYS[1]]
    assert node.set_up() == mounting
    assert not node.empty("own-disk") and node.empty("root-disk") and node.empty("second-disk")
    before = (tmp_path / "own-disk").read_bytes()
    assert node.set_up() == ALWAYS, "mounted already"
    (tmp_path / "mounted").unlink()  # the machine was started again
    assert node.set_up() == mounting
    assert (tmp_path / "own-disk").read_bytes() == before, "what is on it stays"


@needs_mkfs
def test_a_disk_that_somebody_else_uses_stays_as_it_is(tmp_path: Path) -> None:
    """Images for deep learning mount it themselves."""
    node = Node(tmp_path, OWN_DISK)
    command: list[Any] = ["mkfs.ext4", "-q", "-F", "-L", "theirs", tmp_path / "own-disk"]
    subprocess.run(command, check=True, env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})
    before = (tmp_path / "own-disk").read_bytes()
    assert node.set_up() == ALWAYS
    assert (tmp_path / "own-disk").read_bytes() == before
