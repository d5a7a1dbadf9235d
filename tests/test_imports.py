"""Arrows point down: methods, data, models, tasks, the engine and the configuration need no Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import raytrain_speedup

PROGRAM = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "optuna"):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
import raytrain_speedup

names = [m.name for m in pkgutil.iter_modules(raytrain_speedup.__path__) if not m.ispkg]
for room in ("methods", "data", "models", "tasks", "engine"):
    package = importlib.import_module(f"raytrain_speedup.{room}")
    names += [m.name.removeprefix("raytrain_speedup.") for m in
              pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(f"raytrain_speedup.{name}")
print(len(names))
"""


def test_all_below_scaling_imports_without_ray_mlflow_and_optuna():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 40


def test_the_commands_help_imports_nothing_heavy():
    """`speedup --help` answers at once because torch and the rest wait until a command needs them."""
    program = "import sys, raytrain_speedup.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "mlflow", "optuna", "pydantic", "numpy", "pyarrow", "sklearn", "yaml"}
    assert not heavy & set(found.stdout.split())


def test_no_function_is_longer_than_sixty_lines():
    """Forty are the aim; beyond sixty nobody reads it in one piece."""
    package = Path(raytrain_speedup.__file__).parent
    long = [
        f"{file.relative_to(package)}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long
