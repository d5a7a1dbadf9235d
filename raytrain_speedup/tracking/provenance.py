"""What started a run: command, commit, user and version of the package, as tags."""

from __future__ import annotations

import getpass
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raytrain_speedup.tracking import store

PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
GIT_SECONDS = 10.0


def provenance() -> dict[str, str]:
    """The tags of every run that this process begins; what cannot be found out is left out.

    The commit is of the repository around the current directory, where the user's experiment and code are; it
    ends in `-dirty` where files differ from it. Passwords in URIs are left out of the command.
    """
    found = {
        store.COMMAND: _command(tuple(sys.argv)),
        store.COMMIT: _commit(Path.cwd()),
        store.USER: _user(),
        store.PACKAGE: package_version(),
    }
    return {key: value for key, value in found.items() if value}


def package_version() -> str:
    """Of this package; `unknown` in a checkout that is only on the path."""
    try:
        return version("raytrain-speedup")
    except PackageNotFoundError:
        return "unknown"


def _command(arguments: tuple[str, ...]) -> str:
    name = Path(arguments[0]).name
    ours = Path(arguments[0]).stem == "cli" and "raytrain_speedup" in arguments[0]
    return PASSWORD.sub("", shlex.join(["speedup" if ours else name, *arguments[1:]]))


@cache
def _commit(folder: Path) -> str:
    head = _git(folder, "rev-parse", "HEAD")
    return f"{head}-dirty" if head and _git(folder, "status", "--porcelain", "-uno") else head


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository
        return ""
    return done.stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""
