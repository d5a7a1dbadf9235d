"""Replay in the loaders: samples come back with all that belongs to them, within bounds, and after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import assert_same, picture, write_parquet

from raytrain_speedup.data import Loader, Source, Step, augment, build_loader, open_data
from raytrain_speedup.data.base import ArraySource, CorruptSample
from raytrain_speedup.data.batch import WARM_UP
from raytrain_speedup.data.decode import Box, read
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.data.randaugment import randaugment
from raytrain_speedup.data.worker_loader import KeptFiles, usual_bytes
from raytrain_speedup.methods.curriculum.base import Kernel, Stage
from raytrain_speedup.methods.curriculum.crop import low_frequency_crop

KINDS = [("device", 0), ("workers", 0), ("workers", 1)]
REPLAY = Stage(0.5, size=8, magnitude=2.3, replay=3)
LATER = Stage(0.8, size=12, magnitude=5, replay=2)
LAST = Stage(1.0, magnitude=9)
SAMPLE_BYTES = 8 + 4
FILE_BYTES = {"device": 0, "workers": len(picture(0))}


@pytest.fixture
def staged(steps_of) -> list[Step]:
    """12 steps of 4 samples: five replay at 8 pixels, four at 12, three do not replay."""
    stages = [REPLAY] * 5 + [LATER] * 4 + [LAST] * 3
    return [replace(step, stage=stage) for step, stage in zip(steps_of(48, 4), stages, strict=True)]


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
        """Its shift and flip are drawn anew each time, within a step too."""
        views: dict[int, list[torch.Tensor]] = {}
        for batch in load(kind, workers).train_batches(staged[:5], epoch=0):
            for index, x in zip(batch["index"].tolist(), batch["inputs"], strict=True):
                views.setdefault(index, []).append(x)
        pairs = [shown[:2] for shown in views.values() if len(shown) > 1]
        assert len(pairs) > 8
        assert sum(not torch.equal(*pair) for pair in pairs) > len(pairs) / 2

    def test_memory_is_bounded_and_reported(self, load, staged, kind, workers) -> None:
        limit = 10 * (SAMPLE_BYTES + FILE_BYTES[kind]) + 3
        loader = load(kind, workers, replay_limit_gb=limit / 1e9)
        assert loader.metrics() == {}
        for _ in loader.train_batches(staged, epoch=0):
            assert loader.metrics()["replay_bytes"] <= limit
        assert 8 <= loader.metrics()["replay_samples"] <= 10
        assert loader.metrics()["replay_bytes"] > 0.8 * limit

    def test_no_more_is_held_than_there_is(self, load, staged, kind, workers) -> None:
        loader = load(kind, workers, replay_limit_gb=100)
        for epoch in range(3):
            for _ in loader.train_batches(staged, epoch=epoch):
                pass
        files = 0
        if kind == "workers":
            replayed = [index for step in staged[:9] for index in step.index.tolist()]
            files = sum(len(loader.splits.train.encoded(index)) for index in replayed)
        assert loader.metrics() == {"replay_samples": 48, "replay_bytes": 48 * SAMPLE_BYTES + files}

    def test_it_is_kept_across_stages(self, load, staged, kind, workers) -> None:
        """The first step at 12 pixels shows samples that were read at 8."""
        batches = list(load(kind, workers).train_batches(staged, epoch=0))
        read_before = {index for step in staged[:5] for index in step.index.tolist()}
        again = {index for batch in batches[5:9] for index in batch["index"][4:].tolist()}
        assert again & read_before

    def test_warm_up_steps_leave_nothing(self, load, staged, kind, workers) -> None:
        loader = load(kind, workers)
        (warm_up,) = loader.train_batches([replace(staged[0], number=WARM_UP)], epoch=0)
        assert len(warm_up["inputs"]) == 12 and loader.metrics() == {}

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
        """After another epoch before it; the buffer has turned over, and is read back."""
        limit = 20 * (SAMPLE_BYTES + FILE_BYTES[kind]) + 30
        settings = {"augment": augment, "replay_limit_gb": limit / 1e9}
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
        assert resumed.metrics()["replay_samples"] == stopped.metrics()["replay_samples"]
        assert_same(list(resumed.train_batches(staged[done:], epoch=4)), whole[done:])


def test_a_run_may_go_on_with_the_other_loader(load, staged) -> None:
    """What is held is the same, whoever shows it: index and weight."""
    device, workers = load("device", 0), load("workers", 0)
    for _ in device.train_batches(staged, epoch=0):
        pass
    held = device.state_dict()["replay"]
    assert held.keys() == {"index", "weight"} and all(tensor.shape == (36,) for tensor in held.values())
    workers.load_state_dict(device.state_dict())
    assert_same([workers.state_dict()["replay"]], [held])


class TestFiles:
    """The worker loader shows samples again from their files, as if it had read them anew."""

    @pytest.fixture
    def jpegs(self, tmp_path: Path) -> dict[str, Path]:
        return {
            name: write_parquet(
                tmp_path / f"{name}.parquet",
                [picture(i, (60 + i, 50), "JPEG") for i in range(48)],
                [i % 3 for i in range(48)],
            )
            for name in ("train", "test")
        }

    def loader(self, jpegs: dict[str, Path], kernel: Kernel = "resize", **settings: Any) -> Loader:
        chosen = ParquetSettings(
            **jpegs, **{"val_fraction": 0, "loader": "workers", "num_workers": 0, "image_size": 24} | settings
        )
        splits = open_data(chosen, seed=0)
        return build_loader(splits, chosen, device="cpu", seed=7, kernel=kernel)

    def stages(self, steps_of) -> list[Step]:
        small, larger = Stage(0.5, size=8, magnitude=5, replay=3), Stage(1.0, size=16, magnitude=9, replay=2)
        return [replace(step, stage=small if step.number < 6 else larger) for step in steps_of(48, 4)]

    @pytest.mark.parametrize("kernel", ["resize", "fourier"])
    def test_every_showing_is_a_new_crop_of_the_whole_image(self, jpegs, steps_of, kernel) -> None:
        """A loop by hand: box, decode, RandAugment, flip, reduce, for one sample at a time."""
        loader = self.loader(jpegs, kernel, augment="random-resized-crop")
        source, steps = loader.splits.train, self.stages(steps_of)
        mean, std = loader.settings.mean, loader.settings.std
        for step, batch in zip(steps, loader.train_batches(steps, epoch=2), strict=True):
            views = loader.views(batch["index"], step)
            for index, view, x in zip(batch["index"].tolist(), views, batch["inputs"], strict=True):
                stored = read(source, index)
                key: dict[str, Any] = {"seed": 7, "epoch": 2}
                sides = torch.tensor([[stored.height], [stored.width]])
                box = augment.random_boxes(view[None], *sides, **key, min_scale=0.08)
                straight = kernel == "resize"
                image = stored.square(
                    Box(*box[:, 0].tolist()),
                    step.stage.size if straight else 24,
                    "lanczos" if straight else "bicubic",
                )
                image = randaugment(image, step.stage.magnitude, mean=mean, **key, index=int(view))
                planes = torch.from_numpy(image.copy()).permute(2, 0, 1).double() / 255
                if augment.coins(view[None], **key):
                    planes = planes.flip(2)
                planes = low_frequency_crop(planes, step.stage.size, kernel)
                expected = (planes - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
                torch.testing.assert_close(x, expected.float(), atol=1e-4, rtol=0)

    def test_what_is_shown_again_is_not_read_again(self, jpegs, steps_of, monkeypatch) -> None:
        loader, steps = self.loader(jpegs), self.stages(steps_of)
        len(loader.buffer)  # its capacity is estimated from a few files
        asked: list[int] = []
        source = type(loader.splits.train)
        original = source.encoded_many
        monkeypatch.setattr(
            source, "encoded_many", lambda self, indices: asked.extend(indices) or original(self, indices)
        )
        shown = [i for b in loader.train_batches(steps, epoch=0) for i in b["index"].tolist()]
        assert asked == [index for step in steps for index in step.index.tolist()]
        assert len(shown) == 6 * 12 + 6 * 8

    @pytest.mark.parametrize("workers", [0, 2])
    def test_files_that_are_gone_are_read_again(self, jpegs, steps_of, monkeypatch, workers) -> None:
        steps = self.stages(steps_of)
        loader = self.loader(jpegs, num_workers=workers)
        whole = list(loader.train_batches(steps, epoch=0))
        loader.close()
        monkeypatch.setattr(KeptFiles, "among", lambda self, indices: {})
        assert_same(list(self.loader(jpegs).train_batches(steps, epoch=0)), whole)

    def test_memory_is_that_of_files(self, jpegs, steps_of) -> None:
        sizes = [len(read(self.loader(jpegs).splits.train, i).content) for i in range(48)]
        limit = 20 * max(sizes)
        loader = self.loader(jpegs, replay_limit_gb=limit / 1e9)
        for _ in loader.train_batches(self.stages(steps_of), epoch=0):
            metrics = loader.metrics()
            assert metrics["replay_bytes"] <= limit
        assert 19 <= metrics["replay_samples"] <= 28
        assert metrics["replay_bytes"] > 0.8 * limit  # much smaller than 24 x 24 x 3 would not be honest
        assert loader.files.nbytes == sum(len(file) for file in loader.files.among(range(48)).values())

    def test_a_sample_that_cannot_be_read_does_not_mix_up_the_others(self, tmp_path, steps_of) -> None:
        """The loop takes the first 1 / replay of a batch for what was read."""
        images: list = [picture(i, (30, 30), "JPEG") for i in range(48)]
        broken = {3, 4, 17, 30}
        for index in broken:
            images[index] = images[index][:200]
        paths = {
            name: write_parquet(tmp_path / f"{name}.parquet", images, [0] * 48) for name in ("train", "test")
        }
        loader, steps = self.loader(paths, max_corrupt_fraction=1), self.stages(steps_of)
        for step, batch in zip(steps, loader.train_batches(steps, epoch=0), strict=True):
            readable = [index for index in step.index.tolist() if index not in broken]
            assert batch["index"][: len(readable)].tolist() == readable
            assert len(batch["index"]) == len(batch["inputs"]) == len(readable) * step.stage.replay
            assert not broken & set(batch["index"].tolist())
            assert torch.equal(batch["weight"], 1 + batch["index"].float() / 8)


def test_kept_files_are_bounded_and_the_oldest_go() -> None:
    files = KeptFiles()
    for index in range(6):
        files.add({index: bytes(10)}, 35)
    assert list(files.among(range(6))) == [3, 4, 5] and files.nbytes == 30
    files.add({3: bytes(12)}, 35)
    assert files.nbytes == 32
    files.add({6: bytes(3)}, 35)
    files.add({7: bytes(3)}, 35)
    assert list(files.among(range(9))) == [3, 5, 6, 7] and files.nbytes == 28


def test_the_usual_size_of_a_file() -> None:
    class Files(Source):
        targets = np.zeros(100, dtype=np.int64)

        def decode(self, index: int) -> np.ndarray:
            raise NotImplementedError

        def locate(self, index: int) -> str:
            return f"file {index}"

        def encoded(self, index: int) -> bytes:
            if index == 0:
                raise CorruptSample(0, "file 0", "gone")
            return bytes(1000 + index)

    assert usual_bytes(Files()) == pytest.approx(1050, abs=10)
    assert usual_bytes(ArraySource(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "made")) == 0
