"""Arrows point down: methods, data, models, tasks, the engine and the configuration need no Ray. And a public
function is known by its name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from refused_imports import RAY, run_without

from raytrain_speedup.tasks import TASKS

PACKAGE = Path(__file__).parents[1] / "raytrain_speedup"
ABOVE_TASKS = ("engine", "scaling", "adapters", "tracking", "tuning")
"""Rooms on the floors above the tasks."""

ONE_MEANING = {"published_classes", "published_text", "run"}
"""Names that several public functions have: each does what its namesake a floor below does, for more."""

PROGRAM = """
import importlib, pkgutil
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
    found = run_without(RAY, PROGRAM)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 40


def test_the_commands_help_imports_nothing_heavy():
    """`speedup --help` answers at once because torch and the rest wait until a command needs them."""
    program = "import sys, raytrain_speedup.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "mlflow", "optuna", "pydantic", "numpy", "pyarrow", "sklearn", "yaml"}
    assert not heavy & set(found.stdout.split())


def test_an_engine_imports_neither_timm_nor_torchvision():
    """Each takes a second in every process of a sweep, and most runs need neither."""
    program = "import sys, raytrain_speedup.engine.run; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"timm", "torchvision", "matplotlib", "sklearn", "pandas"} & set(found.stdout.split())


def test_no_floor_from_the_engine_up_knows_a_single_task() -> None:
    """A new task is a file and a line of `TASKS`: whatever trains, searches or shows knows the contract alone.
    `distillation` is how a student learns from a teacher of any task; `images` draws their images."""
    tasks = "raytrain_speedup.tasks"
    shared = {f"{tasks}.distillation", f"{tasks}.images"}
    tags = set(TASKS) - {"classification"}  # what a recipe is about that says nothing
    assert len(tags) >= 5
    classes = {settings.__name__ for settings in TASKS.values()}
    found = []
    for path in (path for room in ABOVE_TASKS for path in (PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(tasks):
                named = {alias.name for alias in node.names}
                if (node.module != tasks and node.module not in shared) or named & classes:
                    found.append(f"{path.name} imports {named} from {node.module}")
            elif isinstance(node, ast.Constant) and node.value in tags:
                found.append(f"{path.name} says {node.value!r}")
    assert not found


def test_no_two_public_functions_have_one_name() -> None:
    """But for the commands, which are called as what they call."""
    modules = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        for name in {node.name for node in functions if not node.name.startswith("_")}:
            modules[name].add(str(path.relative_to(PACKAGE)))
    commands = {name for name, found in modules.items() if "cli.py" in found}
    shared = {name: found for name, found in modules.items() if len(found) > 1}
    assert not {name: shared[name] for name in shared.keys() - ONE_MEANING - commands}
    assert shared.keys() >= ONE_MEANING


def test_no_function_is_longer_than_sixty_lines():
    """Forty are the aim; beyond sixty nobody reads it in one piece."""
    long = [
        f"{file.relative_to(PACKAGE)}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long


@pytest.mark.parametrize(("first", "mode"), [("import ray", "None"), ("", "token")])
def test_ray_that_is_imported_already_keeps_its_way_to_authenticate(first: str, mode: str) -> None:
    """It has read it by then; a cluster of another mode would refuse the process that starts it."""
    program = f"import os; {first or 'pass'}\nfrom raytrain_speedup.environment import set_environment\n"
    program += "set_environment(); print(os.environ.get('RAY_AUTH_MODE'))"
    own = {key: value for key, value in os.environ.items() if key not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=own
    )
    assert found.stdout.split() == [mode]
