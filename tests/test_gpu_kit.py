"""The GPU kit runs whole, and without Ray, MLflow and Optuna: the machines it is lent have none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu.rows import read

ROOT = Path(__file__).parents[1]
PROGRAM = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "optuna"):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
runpy.run_module("tests.benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run_kit(out: Path, *arguments: str) -> list[dict]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, "--tiny", "--out", str(out), *arguments]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return read(out / "rows.jsonl")


@pytest.mark.slow
def test_every_part_fills_its_rows_and_goes_on_where_it_was_cut_off(tmp_path):
    rows = run_kit(tmp_path)
    assert not [row for row in rows if "error" in row]
    assert {row["part"] for row in rows} == {"cifar10", "plain", "stages", "crop", "dfkd"}
    runs = {row["row"]: row for row in rows if row["part"] == "cifar10" and "accuracy" in row}
    assert len(runs) == 6
    assert 0.25 < runs["fewer epochs, seed 0"]["passes_saved"] < 0.35
    full, staged = (runs[f"{name}, seed 0"]["train_flops"] for name in ("none", "EfficientTrain++"))
    assert staged < full
    tables = (tmp_path / "tables.md").read_text()
    assert "failed" not in tables and "| InfoBatch + EfficientTrain++ |" in tables

    file = tmp_path / "rows.jsonl"
    kept = [row for row in rows if row["row"] != "none, seed 0"]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"part": "cifar10", "ro')
    again = run_kit(tmp_path)
    assert [row["row"] for row in again[len(kept) :]] == ["none, seed 0"]
