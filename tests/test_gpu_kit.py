"""The GPU kit runs whole, and without Ray, MLflow and Optuna: the machines it is lent have none of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from benchmarks.gpu.rows import read
from refused_imports import RAY, run_without

ROOT = Path(__file__).parents[1]
PROGRAM = """
import runpy
runpy.run_module("tests.benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run_kit(out: Path, *arguments: str) -> list[dict]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    found = run_without(RAY, PROGRAM, "--tiny", "--out", str(out), *arguments, cwd=ROOT, env=environment)
    assert found.returncode == 0, found.stderr
    return read(out / "rows.jsonl")


@pytest.mark.slow
def test_every_part_fills_its_rows_and_goes_on_where_it_was_cut_off(tmp_path):
    rows = run_kit(tmp_path)
    assert not [row for row in rows if "error" in row]
    assert {row["part"] for row in rows} == {"cifar10", "plain", "stages", "crop", "decode", "dfkd", "reuse"}
    runs = {row["row"]: row for row in rows if row["part"] == "cifar10" and "accuracy" in row}
    assert len(runs) == 6
    assert 0.25 < runs["fewer epochs, seed 0"]["passes_saved"] < 0.35
    full, staged = (runs[f"{name}, seed 0"]["train_flops"] for name in ("none", "EfficientTrain++"))
    assert staged < full
    damaged = next(row for row in rows if row["row"] == "damaged")
    assert damaged["by_processes"] == 12 and damaged["by_device"] < 12
    tables = (tmp_path / "tables.md").read_text()
    assert "failed" not in tables and "| InfoBatch + EfficientTrain++ |" in tables

    file = tmp_path / "rows.jsonl"
    kept = [row for row in rows if row["row"] != "none, seed 0"]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"part": "cifar10", "ro')
    again = run_kit(tmp_path)
    assert [row["row"] for row in again[len(kept) :]] == ["none, seed 0"]
