"""Both loaders: the same interface, the same pixels, and nothing that depends on batches, workers or pauses."""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_data import assert_same

from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.augment import coins
from raytrain_speedup.data.device_loader import DeviceLoader
from raytrain_speedup.data.digits import DigitsSettings
from raytrain_speedup.data.folders import ImageFolderSettings
from raytrain_speedup.data.parquet import ParquetSettings, ParquetSource
from raytrain_speedup.data.worker_loader import BatchDataset, WorkerLoader
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.crop import low_frequency_crop

KINDS = [("device", 0), ("workers", 0), ("workers", 2)]
FULL_SIZE = Stage(ends_at=1.0)


@pytest.fixture
def load(load):
    """With cutout, unless a test says otherwise."""
    return partial(load, cutout=3)


@pytest.mark.parametrize(("kind", "workers"), KINDS)
class TestEveryLoader:
    def test_a_batch_for_every_step(self, load, steps_of, kind, workers) -> None:
        loader = load(kind, workers)
        steps = steps_of(48, 10)
        for step, batch in zip(steps, loader.train_batches(steps, epoch=0), strict=True):
            assert torch.equal(batch["index"], step.index) and batch["index"].dtype == torch.int64
            assert torch.equal(batch["weight"], step.weight) and batch["weight"].dtype == torch.float32
            assert batch["target"].tolist() == loader.splits.train.targets[step.index].tolist()
            assert batch["target"].dtype == torch.int64
            assert batch["inputs"].shape == (len(step.index), 3, 12, 12)
            assert batch["inputs"].dtype == torch.float32

    def test_resuming_in_mid_epoch_changes_nothing(self, load, steps_of, kind, workers) -> None:
        steps = steps_of(48, 10)
        whole = list(load(kind, workers).train_batches(steps, epoch=3))
        assert_same(list(load(kind, workers).train_batches(steps[2:], epoch=3)), whole[2:])

    def test_epochs_and_seeds_differ(self, load, steps_of, kind, workers) -> None:
        steps = steps_of(48, 48)
        loader = load(kind, workers)
        first, second, again = (next(iter(loader.train_batches(steps, epoch=e))) for e in (0, 1, 0))
        other = next(iter(load(kind, workers, options={"seed": 8}).train_batches(steps, epoch=0)))
        assert torch.equal(first["inputs"], again["inputs"])
        assert not torch.equal(first["inputs"], second["inputs"])
        assert not torch.equal(first["inputs"], other["inputs"])

    def test_ranks_share_an_evaluation(self, load, kind, workers) -> None:
        for split, size in (("val", 12), ("test", 15)):
            seen = []
            for rank in range(2):
                loader = load(kind, workers, options={"rank": rank, "world": 2})
                for batch in loader.eval_batches(split, batch_size=4):
                    assert batch["weight"].tolist() == [1.0] * len(batch["index"])
                    assert batch["target"].tolist() == loader.source(split).targets[batch["index"]].tolist()
                    seen += batch["index"].tolist()
            assert sorted(seen) == list(range(size))

    def test_evaluation_shows_the_images_as_they_are(self, load, kind, workers) -> None:
        loader = load(kind, workers)
        batch = next(iter(loader.eval_batches("test", batch_size=15)))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loader.settings.mean, loader.settings.std))
        pixels = np.stack([loader.splits.test.decode(i) for i in range(15)])
        expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
        assert torch.allclose(batch["inputs"], expected, atol=1e-5)

    def test_training_images_come_by_position_as_they_are(self, load, kind, workers) -> None:
        loader = load(kind, workers)
        images = loader.train_images(torch.tensor([30, 2, 30]))
        expected = np.stack([loader.splits.train.decode(i) for i in (30, 2, 30)])
        assert images.dtype == torch.uint8
        assert torch.equal(images, torch.from_numpy(expected).permute(0, 3, 1, 2))

    @pytest.mark.parametrize("augment", ["crop-flip", "random-resized-crop"])
    def test_inputs_follow_the_stage(self, load, steps_of, kind, workers, augment) -> None:
        loader = load(kind, workers, augment=augment, erasing=0.5)
        stages = [Stage(0.5, size=6), Stage(0.8, size=8, magnitude=0), Stage(1.0, size=12), Stage(1.0)]
        steps = [steps_of(48, 48, stage)[0] for stage in stages]
        sizes = [batch["inputs"].shape[2:] for batch in loader.train_batches(steps, epoch=0)]
        assert sizes == [(6, 6), (8, 8), (12, 12), (12, 12)]

    def test_memory_format(self, load, steps_of, kind, workers) -> None:
        loader = load(kind, workers, options={"channels_last": True}, erasing=0.5)
        for stage in (FULL_SIZE, Stage(1.0, size=6)):
            for batch in loader.train_batches(steps_of(48, 10, stage), epoch=0):
                assert batch["inputs"].is_contiguous(memory_format=torch.channels_last)
        for batch in loader.eval_batches("val", batch_size=5):
            assert batch["inputs"].is_contiguous(memory_format=torch.channels_last)

    def test_no_global_generator_is_touched(self, load, steps_of, kind, workers) -> None:
        before = torch.get_rng_state()
        loader = load(kind, workers, augment="random-resized-crop", erasing=0.5)
        for epoch in range(2):
            list(loader.train_batches(steps_of(48, 10, Stage(1.0, magnitude=5)), epoch=epoch))
        list(loader.eval_batches("val", batch_size=5))
        assert torch.equal(torch.get_rng_state(), before)

    def test_an_epoch_may_be_left_early(self, load, steps_of, kind, workers) -> None:
        steps = steps_of(48, 4)
        whole = list(load(kind, workers).train_batches(steps, epoch=1))
        loader = load(kind, workers)
        batches = loader.train_batches(steps, epoch=0)
        next(batches)
        batches.close()
        assert_same(list(loader.train_batches(steps, epoch=1)), whole)

    def test_evaluation_in_the_middle_of_an_epoch(self, load, steps_of, kind, workers) -> None:
        steps = steps_of(48, 4)
        whole = list(load(kind, workers).train_batches(steps, epoch=1))
        loader, found = load(kind, workers), []
        for batch in loader.train_batches(steps, epoch=1):
            found.append(batch)
            assert sum(len(b["index"]) for b in loader.eval_batches("val", batch_size=5)) == 12
        assert_same(found, whole)

    def test_no_steps_no_batches(self, load, kind, workers) -> None:
        loader = load(kind, workers, val_fraction=0)
        assert list(loader.train_batches([], epoch=0)) == []
        assert list(loader.eval_batches("val", batch_size=5)) == []


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip", "crop-alternating-flip"])
@pytest.mark.parametrize("size", [None, 8])
def test_both_loaders_show_the_same_pixels(load, steps_of, augment, size) -> None:
    steps = steps_of(48, 10, Stage(1.0, size=size))
    device, workers = (
        list(load(kind, count, augment=augment, erasing=0.5).train_batches(steps, epoch=2))
        for kind, count in (("device", 0), ("workers", 1))
    )
    assert_same(device, workers)


def test_an_epoch_later_alternating_flips_show_the_other_side(load, steps_of) -> None:
    loader = load("device", 0, augment="crop-alternating-flip", padding=0, cutout=0)
    first, second = (
        torch.cat([b["inputs"] for b in loader.train_batches(steps_of(48, 12), epoch=e)]) for e in (4, 5)
    )
    assert torch.allclose(first, second.flip(3), atol=1e-6) and not torch.allclose(first, second, atol=0.1)


@pytest.mark.parametrize("kernel", ["fourier", "aligned", "resize"])
@pytest.mark.parametrize("augment", ["crop-flip", "random-resized-crop"])
@pytest.mark.parametrize(("kind", "workers"), [("device", 0), ("workers", 0)])
def test_images_are_flipped_and_then_reduced(load, steps_of, kind, workers, augment, kernel) -> None:
    """With `fourier` the other order gives other images. Crops that show all of the image, to see the rest."""
    loader = load(kind, workers, {"kernel": kernel}, augment=augment, padding=0, min_scale=1.0, cutout=0)
    steps = steps_of(48, 12, Stage(1.0, size=8))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loader.settings.mean, loader.settings.std))
    flipped = 0
    for batch in loader.train_batches(steps, epoch=2):
        flips = coins(batch["index"], seed=7, epoch=2)
        for index, flip, x in zip(batch["index"].tolist(), flips, batch["inputs"], strict=True):
            image = torch.from_numpy(loader.splits.train.decode(index)).permute(2, 0, 1).double() / 255
            image = low_frequency_crop(image.flip(2) if flip else image, 8, kernel)
            straight = kind == "workers" and augment == "random-resized-crop" and kernel == "resize"
            tolerance = 0.02 if straight else 1e-4  # there pixels are rounded once more
            torch.testing.assert_close(x, ((image - mean) / std).float(), atol=tolerance, rtol=0)
            flipped += bool(flip)
    assert 10 < flipped < 38


@pytest.mark.parametrize("kind", ["device", "workers"])
def test_cutout_shrinks_with_the_images(load, steps_of, kind) -> None:
    loader = load(kind, cutout=6, augment="none")
    for size, side in ((12, 6), (8, 4), (6, 3), (2, 1)):
        (batch,) = loader.train_batches(steps_of(48, 48, Stage(1.0, size=size)), epoch=0)
        blank = (batch["inputs"] == 0).all(1)
        assert blank.any(2).sum(1).max() == blank.any(1).sum(1).max() == side


class TestRandAugmentSetting:
    """`data.randaugment` is the magnitude wherever the stage has none."""

    def batch(self, load, steps_of, stage: Stage, **settings) -> torch.Tensor:
        loader = load("workers", 0, augment="none", cutout=0, **settings)
        (batch,) = loader.train_batches(steps_of(48, 48, stage), epoch=3)
        return batch["inputs"]

    def test_is_the_magnitude_of_a_stage_without_one(self, load, steps_of) -> None:
        named = self.batch(load, steps_of, Stage(1.0, magnitude=7))
        assert torch.equal(self.batch(load, steps_of, FULL_SIZE, randaugment=7), named)
        assert not torch.equal(self.batch(load, steps_of, FULL_SIZE), named)

    @pytest.mark.parametrize("magnitude", [0, 4])
    def test_gives_way_to_that_of_a_stage(self, load, steps_of, magnitude) -> None:
        stage = Stage(1.0, magnitude=magnitude)
        first, second = (self.batch(load, steps_of, stage, randaugment=value) for value in (0, 9))
        assert torch.equal(first, second)

    def test_evaluation_is_left_alone(self, load) -> None:
        loaders = [load("workers", 0, randaugment=value) for value in (0, 9)]
        first, second = (list(loader.eval_batches("val", batch_size=12)) for loader in loaders)
        assert_same(first, second)
        images = [loader.train_images(torch.arange(9)) for loader in loaders]
        assert torch.equal(*images)

    def test_the_device_loader_says_that_it_does_nothing(self, load, steps_of, caplog) -> None:
        for value, times in ((0, 0), (9, 1)):
            loader = load("device", randaugment=value)
            for epoch in range(2):
                list(loader.train_batches(steps_of(48, 48), epoch=epoch))
            assert caplog.text.count("RandAugment magnitudes have no effect") == times

    @pytest.mark.parametrize("value", [-1, 11])
    def test_is_on_timms_scale(self, parquet, value) -> None:
        with pytest.raises(ValidationError, match="randaugment"):
            ParquetSettings(**parquet, randaugment=value)


@pytest.mark.parametrize("augment", ["crop-flip", "random-resized-crop"])
def test_the_number_of_workers_and_the_batch_change_nothing(load, steps_of, augment) -> None:
    stage = Stage(1.0, size=8, magnitude=7)
    runs = []
    for workers, batch in ((1, 12), (2, 12), (0, 5)):
        loader = load("workers", workers, augment=augment)
        found = list(loader.train_batches(steps_of(48, batch, stage), epoch=2))
        runs.append(torch.cat([b["inputs"] for b in found])[torch.cat([b["index"] for b in found]).argsort()])
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_two_ranks_show_what_one_shows(load, steps_of) -> None:
    step = steps_of(48, 48)[0]
    whole = next(iter(load().train_batches([step], epoch=0)))
    for rank in range(2):
        half = type(step)(0, step.index[rank::2], step.weight[rank::2], 48, 0.0, FULL_SIZE)
        batch = next(iter(load(options={"rank": rank, "world": 2}).train_batches([half], epoch=0)))
        assert torch.equal(batch["inputs"], whole["inputs"][rank::2])


def test_workers_persist_over_epochs_and_learn_new_stages(load, steps_of) -> None:
    loader = load("workers", 2, augment="random-resized-crop")
    processes = set()
    for epoch, size in enumerate((6, 8, 12)):
        for batch in loader.train_batches(steps_of(48, 10, Stage(1.0, size=size)), epoch=epoch):
            assert batch["inputs"].shape[-1] == size
        list(loader.eval_batches("val", batch_size=6))
        group = loader._groups["train"]._loader
        processes.add(tuple(worker.pid for worker in group._iterator._workers))
    assert len(processes) == 1
    loader.close()
    for pid in processes.pop():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
def test_workers_share_what_was_read_whatever_pythons_start_method_is(load, steps_of, monkeypatch) -> None:
    """Python 3.14 starts a server that forgets all of it, and that each worker's source would be pickled for."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        monkeypatch.setattr(ParquetSource, "__getstate__", lambda self: pytest.fail("copied to a worker"))
        loader = load("workers", 2)
        batches = list(loader.train_batches(steps_of(48, 12), epoch=0))
        (worker, _) = loader._groups["train"]._loader._iterator._workers
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(batches) == 4
    assert type(worker).__name__ == "ForkProcess"


@pytest.mark.parametrize(("kernel", "sizes"), [("resize", [16, 24]), ("fourier", [24, 24])])
def test_a_resizing_crop_reads_straight_at_the_size_of_the_stage(
    folder, steps_of, monkeypatch, kernel, sizes
) -> None:
    settings = ImageFolderSettings(
        root=folder, image_size=24, loader="workers", num_workers=0, val_fraction=0
    )
    loader = build_loader(open_data(settings, seed=0), settings, device="cpu", seed=0, kernel=kernel)
    asked = []
    original = BatchDataset.__getitem__
    monkeypatch.setattr(
        BatchDataset,
        "__getitem__",
        lambda self, request: asked.append(request.size) or original(self, request),
    )
    for stage in (Stage(0.5, size=16), FULL_SIZE):
        (batch,) = loader.train_batches(steps_of(24, 24, stage), epoch=0)
        assert batch["inputs"].shape[2:] == (stage.size or 24, stage.size or 24)
    assert asked == sizes


class TestChoice:
    def test_auto_takes_the_device_where_the_images_fit(self, parquet) -> None:
        def chosen(**settings) -> type:
            section = ParquetSettings(**parquet, **settings)
            return type(build_loader(open_data(section, seed=0), section, device="cpu", seed=0))

        assert chosen() is DeviceLoader
        assert chosen(memory_limit_gb=1e-6) is WorkerLoader  # 75 images of 432 bytes
        assert chosen(memory_limit_gb=4e-5) is DeviceLoader
        assert chosen(augment="random-resized-crop") is WorkerLoader  # crops want the original resolution
        assert chosen(augment="random-resized-crop", loader="device") is DeviceLoader
        assert chosen(randaugment=5) is WorkerLoader  # which wants single images

    def test_digits_live_on_the_device(self) -> None:
        settings = DigitsSettings()
        loader = build_loader(open_data(settings, seed=0), settings, device="cpu", seed=0)
        assert isinstance(loader, DeviceLoader)
