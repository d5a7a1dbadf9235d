"""A training script on two Ray Train workers, and on one in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raytrain_speedup.scaling.launch import launch
from raytrain_speedup.script import load_any

SHARED = """
import torch
import torch.distributed as dist


def main(run):
    seen = torch.zeros(40)
    pruner = run.pruner(40)
    for epoch in range(run.epochs):
        with run.training():
            for index in pruner.plan(epoch).indices[run.rank :: run.world].split(4):
                seen[index] += 1
                pruner.observe(index, index / 40)
            pruner.exchange()
        if run.world > 1:
            dist.all_reduce(seen)
        torch.save(seen, run.checkpoint_dir / f"seen-{run.rank}.pt")
        run.report(progress=(epoch + 1) / run.epochs, val_ranks=run.rank)
    return {"test_accuracy": 90 + run.world, "val_shown": int(seen.sum())}
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_script_on_workers(workers: int, tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "shared_script.py").write_text(SHARED)
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntrainable: shared_script:main\ntrain: {epochs: 1}\n")
    reports: list[dict[str, Any]] = []
    overrides = {"scaling.workers": workers, "scaling.start_timeout": 300}
    metrics = launch(
        load_any(file, overrides), tmp_path / "run", lambda kind, told: reports.append(dict(told))
    ).to_dict()
    assert metrics["accuracy"] == 90 + workers and metrics["val_shown"] == 40, "every sample on one rank"
    assert metrics["hardware"].startswith(f"{workers} x ") and metrics["val_ranks"] == 0
    assert metrics["passes_saved"] == 0 and metrics["samples_shown"] == 40
    assert [report.get("final", False) for report in reports if "epoch" in report] == [False, True]
