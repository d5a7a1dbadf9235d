"""The examples of docs/extending.md run as they stand, and add fewer than ten lines to a script without pruning."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from adapter_runs import schedule_file
from refused_imports import RAY, run_without
from two_ranks import accuracy

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
PLAIN = Path(__file__).parent / "plain"
EXAMPLES = dict(
    re.findall(
        r"test_adapters_page\.py: (\w+) -->\n```python\n(.*?)```",
        (ROOT / "docs/extending.md").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
)
NAMES = ("loader", "ddp", "lightning", "transformers")
IN_THIS_PROCESS = ("loader", "lightning", "transformers")
"""Importing their libraries takes longer than anything the scripts do."""


def plain(name: str) -> str:
    """A script without pruning."""
    return (PLAIN / f"{name}.py").read_text(encoding="utf-8")


def trained(script: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The accuracy on the training images after a script."""
    if name != "loader":
        pytest.importorskip(name)
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(script, f"{name}.py", "exec"), names)
    return accuracy(names)


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_an_example_trains_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    schedule_file(tmp_path / "schedule.yaml")
    assert trained(EXAMPLES[name], name, tmp_path, monkeypatch) > 0.9


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_the_script_without_pruning_is_a_whole_script(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Or what is counted below would be too little."""
    assert trained(plain(name), name, tmp_path, monkeypatch) > 0.9


def test_the_scripts_for_several_processes_train_on_two(tmp_path: Path):
    """The example, and the one without pruning."""
    schedule_file(tmp_path / "schedule.yaml")
    scripts = {"example.py": EXAMPLES["ddp"], "plain.py": plain("ddp")}
    for name, script in scripts.items():
        (tmp_path / name).write_text(script, encoding="utf-8")
    command = [sys.executable, str(Path(two_ranks.__file__)), *scripts]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    right = [float(line) for line in done.stdout.split()]
    assert len(right) == len(scripts) and min(right) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_it_adds_fewer_than_ten_lines(name: str):
    """Changed lines are counted as added ones."""
    difference = difflib.ndiff(plain(name).splitlines(), EXAMPLES[name].splitlines())
    added = [line for line in difference if line.startswith("+ ") and line[2:].strip()]
    assert 1 <= len(added) < 10, added


MISSING = """
from raytrain_speedup.settings import UserError
import raytrain_speedup.adapters
for name in ("lightning", "transformers"):
    try:
        __import__(f"raytrain_speedup.adapters.{name}")
    except UserError as error:
        print(error)
"""


def test_a_missing_library_is_a_line_with_its_extra_and_the_loader_needs_none():
    done = run_without((*RAY, "lightning", "transformers", "accelerate"), MISSING)
    expected = "not installed; expected pip install 'raytrain-speedup"
    assert done.stdout.splitlines() == [
        f"adapters.lightning: lightning is {expected}[lightning]'",
        f"adapters.transformers: accelerate is {expected}[transformers]'",
    ], done.stderr
