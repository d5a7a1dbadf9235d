"""A Python process of its own, in which some libraries cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

RAY = ("ray", "mlflow", "optuna")

HOOK = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"{{name}} is refused", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run_without(
    refused: tuple[str, ...], program: str, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; `options` are those of `subprocess.run`."""
    command = [sys.executable, "-c", HOOK.format(refused=refused) + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)
