"""Replay in the loaders: samples come back with all that belongs to them, within bounds, and after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_speedup.data import Loader, Step, build_loader, open_data
from raytrain_speedup.data.batch import REHEARSAL, Batch
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.methods.curriculum.base import Stage

KINDS = [("device", 0), ("workers", 0), ("workers", 1)]
REPLAY = Stage(0.5, size=8, magnitude=2.3, replay=3)
LATER = Stage(0.8, size=12, magnitude=5, replay=2)
LAST = Stage(1.0, magnitude=9)
PIXELS = 3 * 12 * 12
SAMPLE_BYTES = {"device": 8 + 4, "workers": PIXELS + 8 + 8 + 4 + 8 + 8}


@pytest.fixture
def load(parquet: dict[str, Path]):
    """Builds a loader over the 60 PNGs of 12 x 12; keywords go to the settings, `options` to the loader."""
    loaders: list[Loader] = []

    def build(kind: str, workers: int, options: dict[str, Any] | None = None, **settings: Any) -> Loader:
        chosen = ParquetSettings(
            **parquet, **{"val_share": 0.2, "loader": kind, "num_workers": workers} | settings
        )
        data = open_data(chosen, seed=0)
        loaders.append(build_loader(data, chosen, **{"device": "cpu", "seed": 7} | (options or {})))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


@pytest.fixture
def staged(steps_of) -> list[Step]:
    """12 steps of 4 samples: five replay at 8 pixels, four at 12, three do not replay."""
    stages = [REPLAY] * 5 + [LATER] * 4 + [LAST] * 3
    return [replace(step, stage=stage) for step, stage in zip(steps_of(48, 4), stages, strict=True)]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize(("kind", "workers"), KINDS)
class TestEveryLoader:
    def test_a_batch_is_what_was_read_and_samples_of_before(self, load, staged, kind, workers) -> None:
        loader, seen = load(kind, workers), set()
        targets = torch.from_numpy(loader.splits.train.targets)
        for step, batch in zip(staged, loader.train_batches(staged, epoch=1), strict=True):
            index, times = batch["index"], step.stage.replay
            assert index[:4].tolist() == step.index.tolist()
            assert len(index) == len(batch["inputs"]) == 4 * times
            assert batch["inputs"].shape[-1] == (step.stage.size or 12)
            seen |= set(step.index.tolist())
            assert set(index.tolist()) <= seen
            assert torch.equal(batch["target"], targets[index])
            assert torch.equal(batch["weight"], 1 + index.float() / 8)

    def test_a_sample_shown_again_looks_different(self, load, staged, kind, workers) -> None:
        """Its shift and mirror are drawn anew each time, within a step too."""
        views: dict[int, list[torch.Tensor]] = {}
        for batch in load(kind, workers).train_batches(staged[:5], epoch=0):
            for index, x in zip(batch["index"].tolist(), batch["inputs"], strict=True):
                views.setdefault(index, []).append(x)
        pairs = [shown[:2] for shown in views.values() if len(shown) > 1]
        assert len(pairs) > 8
        assert sum(not torch.equal(*pair) for pair in pairs) > len(pairs) / 2

    def test_memory_is_bounded_and_reported(self, load, staged, kind, workers) -> None:
        limit = 10 * SAMPLE_BYTES[kind] + 3
        loader = load(kind, workers, replay_limit_gb=limit / 1e9)
        assert loader.figures() == {}
        for _ in loader.train_batches(staged, epoch=0):
            assert loader.figures()["replay_bytes"] <= limit
        assert loader.figures() == {"replay_samples": 10, "replay_bytes": 10 * SAMPLE_BYTES[kind]}

    def test_no_more_is_held_than_there_is(self, load, staged, kind, workers) -> None:
        loader = load(kind, workers, replay_limit_gb=100)
        for epoch in range(3):
            for _ in loader.train_batches(staged, epoch=epoch):
                pass
        assert loader.figures() == {"replay_samples": 48, "replay_bytes": 48 * SAMPLE_BYTES[kind]}

    def test_it_is_kept_across_stages(self, load, staged, kind, workers) -> None:
        """The first step at 12 pixels shows samples that were read at 8."""
        batches = list(load(kind, workers).train_batches(staged, epoch=0))
        read_before = {index for step in staged[:5] for index in step.index.tolist()}
        again = {index for batch in batches[5:9] for index in batch["index"][4:].tolist()}
        assert again & read_before

    def test_rehearsals_leave_nothing(self, load, staged, kind, workers) -> None:
        loader = load(kind, workers)
        (rehearsed,) = loader.train_batches([replace(staged[0], number=REHEARSAL)], epoch=0)
        assert len(rehearsed["inputs"]) == 12 and loader.figures() == {}

    def test_it_is_deterministic_and_each_rank_draws_its_own(self, load, staged, kind, workers) -> None:
        first, again = (list(load(kind, workers).train_batches(staged, epoch=2)) for _ in range(2))
        assert_same(first, again)
        other = load(kind, workers, options={"rank": 1, "world": 2}).train_batches(staged, epoch=2)
        assert [b["index"].tolist() for b in other] != [b["index"].tolist() for b in first]

    @pytest.mark.parametrize("augment", ["crop-flip", "random-resized-crop"])
    @pytest.mark.parametrize("done", [2, 7, 10])
    def test_a_resumed_pass_has_the_same_pixels(
        self, load, staged, kind, workers, done, augment, tmp_path
    ) -> None:
        """After another epoch before it; the buffer has turned over, and is rebuilt or read back."""
        settings = {"augment": augment, "replay_limit_gb": 20 * SAMPLE_BYTES[kind] / 1e9}
        loader = load(kind, workers, **settings)
        for _ in loader.train_batches(staged[:7], epoch=3):
            pass
        whole = list(loader.train_batches(staged, epoch=4))
        stopped = load(kind, workers, **settings)
        for _ in stopped.train_batches(staged[:7], epoch=3):
            pass
        for _ in stopped.train_batches(staged[:done], epoch=4):
            pass
        torch.save(stopped.state_dict(), tmp_path / "state.pt")
        resumed = load(kind, workers, **settings)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert resumed.figures() == stopped.figures()
        assert_same(list(resumed.train_batches(staged[done:], epoch=4)), whole[done:])


def test_pixels_are_not_in_the_checkpoint_of_a_loader_that_can_read_them_again(load, staged) -> None:
    loader = load("workers", 0)
    for _ in loader.train_batches(staged, epoch=0):
        pass
    held = loader.state_dict()["replay"]
    assert held.keys() == {"index", "weight", "magnitude", "epoch"}
    assert all(tensor.shape == (36,) for tensor in held.values())
