"""A sweep over the settings of a synthesis: judged by agreement, for a search has no data either."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.export import export
from raytrain_speedup.tuning.sweep import sweep

SPACE = """
name: tiny-dfkd
experiment: digits-dfkd
overrides:
  data.image_size: 8
  data.val_fraction: 0.84
  teacher.model.name: resnet8
  teacher.train.epochs: 1
  model.name: resnet8
  train.epochs: 2
  train.batch_size: 16
  train.threads: 1
  distillation.batch_size: 32
  distillation.steps: 1
  distillation.width: 8
  distillation.warmup: 0
  distillation.student_steps: 2
  scaling.storage: {folder}/runs
search:
  distillation.lr_g: {{type: float, low: 0.001, high: 0.01, log: true}}
baseline: {{distillation.reuse: none}}
controls: {{noise: {{distillation.method: noise}}}}
trials: 1
confirm: {{winners: 1, until: seeds}}
seeds: [0]
"""


def test_a_sweep_without_data(ray_session: None, tmp_path: Path):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE.format(folder=tmp_path))
    console = Console(file=io.StringIO(), width=160)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = sweep(file, tracking_uri=uri, out=tmp_path, console=console)
    rows = {row.role: row for row in result.rows}
    assert set(rows) == {"baseline", "noise", "winner"}
    assert rows["winner"].comparison is not None and rows["winner"].comparison.speedup.wall > 0
    assert rows["winner"].method == "fastdfkd"
    assert rows["noise"].difference is not None
    tracker = open_tracker(uri)
    for name in ("loss", "bn", "oh", "adv"):
        curve = tracker.curve(rows["winner"].run_id, f"epoch/synthesis_{name}")
        assert [step for step, _ in curve] == [1, 2]
    assert result.plot is not None and result.plot.is_file()
    assert result.schedule is None, "there is no schedule of pruning and curriculum to take away"
    with pytest.raises(UserError, match="trained without data; expected a run whose pruning and curriculum"):
        export(rows["winner"].run_id, tmp_path / "schedule.yaml", tracking_uri=uri)
