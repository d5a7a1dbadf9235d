"""The examples of docs/extending.md run as they stand, and add fewer than ten lines to a script without pruning."""

from __future__ import annotations

import difflib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from adapter_runs import schedule_file
from refused_imports import RAY, run_without

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
ACCURACY = """
net = globals().get("net") or getattr(model, "net", model)
print("right", (net.eval()(images).argmax(1) == torch.tensor(digits.target)).float().mean().item())
"""


def run(script: str, name: str, folder: Path) -> float:
    """The accuracy on the training images after a script."""
    if name in ("lightning", "transformers") and importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    (folder / "script.py").write_text(script + ACCURACY, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if name == "ddp" else []
    done = subprocess.run(
        [sys.executable, *launcher, "script.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(re.findall(r"right ([\d.]+)", done.stdout)[-1])


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_as_it_stands(name: str, tmp_path: Path):
    schedule_file(tmp_path / "schedule.yaml")
    assert run(EXAMPLES[name], name, tmp_path) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_the_script_without_pruning_is_a_whole_script(name: str, tmp_path: Path):
    """Or what is counted below would be too little."""
    assert run((PLAIN / f"{name}.py").read_text(encoding="utf-8"), name, tmp_path) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_it_adds_fewer_than_ten_lines(name: str):
    """Changed lines are counted as added ones."""
    plain = (PLAIN / f"{name}.py").read_text(encoding="utf-8").splitlines()
    difference = difflib.ndiff(plain, EXAMPLES[name].splitlines())
    added = [line for line in difference if line.startswith("+ ") and line[2:].strip()]
    assert 1 <= len(added) < 10, added


MISSING = """
from raytrain_speedup.settings import UserError
try:
    __import__(sys.argv[1])
    print("imported")
except UserError as error:
    print(error)
"""


def imported(module: str, *refused: str) -> str:
    return run_without(refused, MISSING, module).stdout.strip()


@pytest.mark.parametrize("library, extra", [("lightning", "lightning"), ("transformers", "transformers")])
def test_a_missing_library_is_a_line_with_its_extra(library: str, extra: str):
    assert imported(f"raytrain_speedup.adapters.{library}", library) == (
        f"adapters.{library}: {library} is not installed; expected pip install 'raytrain-speedup[{extra}]'"
    )


def test_the_loader_needs_none_of_them():
    refused = (*RAY, "lightning", "transformers", "accelerate")
    assert imported("raytrain_speedup.adapters", *refused) == "imported"
