"""A run goes on with another number of workers, 1 -> 2 -> 1, from the middle of an epoch, as if nothing changed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.compare import NotComparable, compare
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.scaling.launch import launch

pytestmark = pytest.mark.usefixtures("ray_session")

EPOCHS = 12
TINY = {
    "data.image_size": 8,
    "data.augment": "none",
    "data.val_fraction": 0.84,  # 230 samples are left: up to eight steps an epoch
    "model.name": "timm/vit_tiny_patch16_224",  # without batch norm, which sees its rank alone
    "model.options": {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2},
    "train.channels_last": False,
    "train.lr": 0.02,
    "train.batch_size": 32,
    "train.epochs": EPOCHS,
    "train.checkpoint_steps": 1,
    "pruning.method": "random",
    "scaling.start_timeout": 300,
}


def on(workers: int) -> Experiment:
    return load_experiment("digits", TINY | {"scaling.workers": workers})


class Diary:
    """Keeps what is reported; presses Ctrl-C after so many reports (one comes with every step)."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[dict[str, Any]] = []
        self._left = stop_after

    def __call__(self, kind: str, metrics: Any) -> None:
        if kind != "report":
            return
        if "kept_fraction" in metrics:
            self.epochs.append(dict(metrics))
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGINT)


def last_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint, and what all ranks share of it."""
    last = max(folder.glob("checkpoint-*"))
    return last, torch.load(last / "run.pt", weights_only=True)


def test_one_two_one(tmp_path: Path) -> None:
    whole = Diary()
    expected = launch(on(1), tmp_path / "whole", whole).to_dict()

    parts = [Diary(stop_after=8), Diary(stop_after=4), Diary()]
    folder = tmp_path / "parts"
    with pytest.raises(Stopped, match=r"stopped in epoch 2 after step \d of \d; .*go on with: --resume"):
        launch(on(1), folder, parts[0])
    begun = last_of(folder)[1]
    assert begun["next_step"] > 0, "stopped within an epoch"
    with pytest.raises(Stopped, match="go on with: --resume"):
        launch(on(2), folder, parts[1])
    last, shared = last_of(folder)
    assert (last / "rank-1.pt").is_file()
    assert (begun["epoch"], begun["next_step"]) < (shared["epoch"], shared["next_step"]) < (EPOCHS, 0)
    metrics = launch(on(1), folder, parts[2]).to_dict()

    for name in ("samples_shown", "passes_saved", "train_flops", "compute_spent", "epoch", "progress"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-12), name
    epochs = {report["epoch"]: report for part in parts for report in part.epochs}
    assert metrics["samples_shown"] == sum(round(230 * report["kept_fraction"]) for report in epochs.values())
    for report in whole.epochs:  # every epoch showed what it shows of old, no sample twice and none left out
        again = epochs[report["epoch"]]
        assert again["samples_shown"] == report["samples_shown"]
        assert again["train_loss"] == pytest.approx(report["train_loss"], rel=1e-2)
    ends = [last_of(tmp_path / name) for name in ("whole", "parts")]
    assert ends[0][1]["steps_taken"] == ends[1][1]["steps_taken"]
    weights, again = (torch.load(last / "model.pt", weights_only=True) for last, _ in ends)
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=2e-2, atol=2e-3)

    both_kinds_are_told(metrics, ends[1][1]["workers"], expected)


def both_kinds_are_told(metrics: dict[str, Any], by_epoch: dict[int, list[int]], plain: dict) -> None:
    assert metrics["hardware"].startswith("1 then 2 then 1 x ")
    assert (metrics["workers_min"], metrics["workers_max"]) == (1, 2)
    assert by_epoch[0] == [1] and by_epoch[1] == [1, 2] and by_epoch[EPOCHS - 1] == [1]
    with pytest.raises(NotComparable, match=r"another number of workers: 1 then 2 then 1 x"):
        compare([FinalMetrics.from_dict(metrics)], [FinalMetrics.from_dict(metrics)])
    whole = FinalMetrics.from_dict(plain)
    assert compare([whole], [whole]).speedup.ratio == pytest.approx(1)
