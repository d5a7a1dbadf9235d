"""Unreadable samples: left out, counted, named in the log once, and refused above the fraction allowed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_data import picture, write_parquet

from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.folders import ImageFolderSettings
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.data.unreadable import Skipped
from raytrain_speedup.settings import Stalled, UserError

KINDS = [("device", 0), ("workers", 0), ("workers", 2), ("read-only", 1)]
"""The last: workers that read, and a device that decodes."""


@pytest.fixture
def broken(tmp_path):
    """60 samples of which 20 and 33 cannot be read, and 10 test samples of which 4 cannot."""
    images: list = [picture(i, kind="JPEG" if i % 2 else "PNG", size=(24, 24)) for i in range(60)]
    images[20], images[33] = (images[i][: len(images[i]) // 2] for i in (20, 33))
    test = [picture(i) for i in range(10)]
    test[4] = b"not an image"
    return {
        "train": write_parquet(tmp_path / "train.parquet", images, [i % 3 for i in range(60)]),
        "test": write_parquet(tmp_path / "test.parquet", test, [i % 3 for i in range(10)]),
    }


def build(paths, kind: str, workers: int, **settings):
    how = {"loader": "workers", "decode": "device"} if kind == "read-only" else {"loader": kind}
    section = ParquetSettings(
        **paths, **{"val_fraction": 0, **how, "num_workers": workers, "image_size": 24} | settings
    )
    return build_loader(open_data(section, seed=0), section, device="cpu", seed=0)


@pytest.mark.parametrize(("kind", "workers"), KINDS)
class TestEveryLoader:
    def test_skipped_counted_and_named_once(self, broken, steps_of, caplog, kind, workers) -> None:
        loader = build(broken, kind, workers, max_corrupt_fraction=0.2)
        steps = steps_of(60, 8)
        with caplog.at_level(logging.WARNING, logger="raytrain_speedup.data"):
            for epoch in range(2):
                for step, batch in zip(steps, loader.train_batches(steps, epoch=epoch), strict=True):
                    readable = [i for i in step.index.tolist() if i not in (20, 33)]
                    assert batch["index"].tolist() == readable
                    assert {len(value) for value in batch.values()} == {len(readable)}
                    assert torch.equal(batch["weight"], 1 + batch["index"].float() / 8)
                    assert batch["target"].tolist() == [i % 3 for i in readable]
        loader.close()
        skipped = loader.skipped["train"]
        assert skipped.count == 2
        assert len(caplog.records) == 2
        for row in (20, 33):
            assert sum(f"train.parquet row {row}: " in record.getMessage() for record in caplog.records) == 1
            assert any(f"row {row}: " in name for name in skipped.names)

    def test_refused_above_the_share(self, broken, steps_of, kind, workers) -> None:
        loader = build(broken, kind, workers, max_corrupt_fraction=0.02)
        with pytest.raises(
            UserError,
            match=r"data\.train: 2 of 60 .* more than data\.max_corrupt_fraction=0\.02 .*row (20|33)",
        ):
            list(loader.train_batches(steps_of(60, 8), epoch=0))
        loader.close()

    def test_a_step_of_unreadable_samples_is_an_empty_batch(self, broken, steps_of, kind, workers) -> None:
        loader = build(broken, kind, workers, max_corrupt_fraction=0.2)
        step = steps_of(60, 60)[0]
        bad = type(step)(0, torch.tensor([33, 20]), torch.ones(2), 2, 0.0, step.stage)
        (batch,) = loader.train_batches([bad], epoch=0)
        assert batch["inputs"].shape == (0, 3, 24, 24) and batch["index"].shape == (0,)
        loader.close()

    def test_so_are_images_asked_for_by_position(self, broken, kind, workers) -> None:
        loader = build(broken, kind, workers, max_corrupt_fraction=0.2)
        images, alone = (
            loader.train_images(torch.tensor([5, 33, 7])),
            loader.train_images(torch.tensor([5, 7])),
        )
        loader.close()
        assert images.shape == (2, 3, 24, 24)
        assert torch.equal(images, alone)
        assert loader.skipped["train"].count >= 1

    def test_evaluation_leaves_them_out_too(self, broken, kind, workers) -> None:
        loader = build(broken, kind, workers, max_corrupt_fraction=0.2)
        seen = [i for batch in loader.eval_batches("test", batch_size=4) for i in batch["index"].tolist()]
        assert seen == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert loader.skipped["test"].count == 1 and loader.skipped["train"].count == 0
        loader.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_in_a_folder(folder, steps_of, caplog, kind) -> None:
    target = folder / "train" / "bee" / f"2.{kind.lower()}"
    data = picture(2, size=(48, 30), kind=kind)
    target.write_bytes(data[: len(data) * 2 // 3])
    settings = ImageFolderSettings(
        root=folder, image_size=24, val_fraction=0, num_workers=0, max_corrupt_fraction=0.1, loader="workers"
    )
    splits = open_data(settings, seed=0)
    loader = build_loader(splits, settings, device="cpu", seed=0)
    batches = list(loader.train_batches(steps_of(len(splits.train), 5), epoch=0))
    assert sum(len(batch["index"]) for batch in batches) == len(splits.train) - 1
    assert str(target) in caplog.text


def test_only_unreadable_images_are_reported_when_opening(tmp_path, parquet) -> None:
    train = write_parquet(tmp_path / "bad.parquet", [b"x"] * 5, [0, 1, 2, 0, 1])
    settings = ParquetSettings(train=train, test=parquet["test"], val_fraction=0)
    with pytest.raises(UserError, match=r"data\.train: none of the first 5 images can be read: .*row 0: "):
        open_data(settings, seed=0)


def test_a_worker_that_dies_is_reported_without_a_traceback(parquet, steps_of) -> None:
    section = ParquetSettings(**parquet, val_fraction=0, loader="workers", num_workers=1)
    loader = build_loader(open_data(section, seed=0), section, device="cpu", seed=0)
    batches = loader.train_batches(steps_of(60, 2), epoch=0)
    next(batches)
    os.kill(loader._groups["train"]._loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"data\.num_workers=1: a worker process died"):
        list(batches)


def test_a_file_that_does_not_answer_is_named(folder, steps_of) -> None:
    """A pipe that nobody writes to: whoever opens it waits for ever."""
    settings = ImageFolderSettings(
        root=folder, image_size=24, val_fraction=0, num_workers=2, loader="workers", timeout=1.5
    )
    splits = open_data(settings, seed=0)
    loader = build_loader(splits, settings, device="cpu", seed=0)
    steps = steps_of(len(splits.train), 1)
    with contextlib.closing(loader):
        batches = loader.train_batches(steps, epoch=0)
        assert len(steps) > 8 and next(batches) is not None
        target = Path(splits.train.locate(steps[-2].index[0].item()))
        target.unlink()
        os.mkfifo(target)
        said = r"^data\.timeout: no batch came from 2 loading processes for 1\.5 s; it is of "
        began = time.monotonic()
        with pytest.raises(Stalled, match=f"{said}{re.escape(str(target))}; "):
            list(batches)
        assert time.monotonic() - began < 20


@contextlib.contextmanager
def silent_until_named(target: Path, pipe: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A file that nobody can read before it stands in the log."""
    content = target.read_bytes()
    os.mkfifo(pipe)
    target.unlink()
    target.symlink_to(pipe)

    def answer() -> None:
        until = time.monotonic() + 20
        while str(target) not in caplog.text and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.5)  # it is told once
        target.unlink()
        target.write_bytes(content)
        pipe.write_bytes(content)  # to who waits

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join()


def test_a_file_that_holds_up_the_device_loader_is_named(folder, tmp_path, caplog) -> None:
    settings = ImageFolderSettings(root=folder, image_size=24, val_fraction=0, loader="device", timeout=0.3)
    splits = open_data(settings, seed=0)
    loader = build_loader(splits, settings, device="cpu", seed=0)
    target = Path(splits.train.locate(0))
    with contextlib.closing(loader), silent_until_named(target, tmp_path / "pipe", caplog):
        assert len(loader.train_images(torch.arange(3))) == 3
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith(f"data.timeout: this process has waited 0.3 s for {target}, or one of")


def test_a_file_that_this_process_waits_for_is_named(folder, steps_of, tmp_path, caplog) -> None:
    """Without loading processes nothing can end the wait; when the file answers, the batch comes."""
    settings = ImageFolderSettings(
        root=folder, image_size=24, val_fraction=0, num_workers=0, loader="workers", timeout=0.3
    )
    splits = open_data(settings, seed=0)
    loader = build_loader(splits, settings, device="cpu", seed=0)
    steps = steps_of(len(splits.train), 3)
    target = Path(splits.train.locate(steps[1].index[1].item()))
    with contextlib.closing(loader):
        batches = loader.train_batches(steps, epoch=0)
        assert next(batches) is not None
        time.sleep(0.5)  # a long step is no wait
        assert not caplog.records
        with silent_until_named(target, tmp_path / "pipe", caplog):
            assert [len(batch["index"]) for batch in batches] == [len(step.index) for step in steps[1:]]
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("data.timeout: this process has read one batch for 0.3 s, of ")
    assert str(target) in told


def test_the_share_is_of_the_samples_met_once_there_are_enough() -> None:
    skipped = Skipped("train", size=1_000_000, limit=0.01)
    skipped.saw(256)
    for index in range(10):
        skipped.add(CorruptSample(index, f"file {index}", "broken"))
    with pytest.raises(UserError, match=r"11 of 1000 samples cannot be read"):
        skipped.add(CorruptSample(10, "file 10", "broken"))
    skipped.saw(5000)
    skipped.add(CorruptSample(11, "file 11", "broken"))
    assert skipped.count == 12 and len(skipped.names) == 5
