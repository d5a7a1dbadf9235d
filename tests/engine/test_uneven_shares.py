"""Elastic workers are any number, and a batch need not split evenly among them."""

from pathlib import Path
from typing import Any

import torch
from engine_runs import CPU, VIT, Diary, WorkerDiary, run, tiny, trained, weights
from ranks import on_two_ranks

UNEVEN = VIT | {"train.batch_size": 33, "train.accumulate": 2, "pruning.method": "random"}


def worker(rank: int, folder: Path) -> dict[str, Any]:
    return run(tiny(UNEVEN | {"scaling.workers": [1, 2]}), WorkerDiary(folder, rank), device=CPU)


def test_uneven_shares_are_the_steps_of_one_worker(tmp_path: Path) -> None:
    """A batch of 33 is 17 and 16 samples, and every one of them weighs the same."""
    whole, expected, _ = trained(tiny(UNEVEN | {"train.accumulate": 1}), tmp_path / "one")
    (tmp_path / "two").mkdir()
    _, found = on_two_ranks(worker, tmp_path / "two")
    assert found["samples_shown"] == whole["samples_shown"]
    torch.testing.assert_close(weights(Diary(tmp_path / "two")), expected, rtol=1e-3, atol=1e-4)
