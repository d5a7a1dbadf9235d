"""JPEGs decoded by the device (`data.decode=device`), here by torchvision's decoder on the CPU: what a GPU's does
is in tests/benchmarks/gpu/."""

from __future__ import annotations

import io
import logging
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_data import picture, write_parquet

from raytrain_speedup.data import build_loader, device_decode, open_data
from raytrain_speedup.data.decode import Box, is_whole_jpeg, resample
from raytrain_speedup.data.device_decode import Encoded, File, filter_weights, resample_parts
from raytrain_speedup.data.masks import MaskFolderSettings
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.methods.curriculum.base import FULL, Stage

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")

LEVELS = 2.1 / 255 / 0.22
"""Two levels of a pixel, of normalised inputs."""

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 95} | options)
    return stream.getvalue()


@pytest.mark.parametrize("resampling", ["bicubic", "lanczos"])
@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=5),
    size=st.integers(1, 40),
)
def test_resamples_as_pillow_does(resampling, shapes, size) -> None:
    """Larger and smaller in one batch; rows first, which Pillow does where that is cheaper. Its weights are
    integers: now and then a row gets another level, which the columns' weights make up to two of."""
    images = [noise(*shape, seed) for seed, shape in enumerate(shapes)]
    parts = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    ours = resample_parts(parts, size, resampling).numpy().astype(int)
    for found, image in zip(ours, images, strict=True):
        rows = Image.fromarray(image).resize((size, len(image)), PILLOW[resampling])
        theirs = np.asarray(rows.resize((size, size), PILLOW[resampling])).astype(int)
        assert np.abs(found - theirs).max() <= 2
        assert (found != theirs).sum() <= max(3, 0.05 * theirs.size)


class TestResampling:
    def test_as_the_processes_do(self) -> None:
        image = noise(61, 83)
        part = torch.from_numpy(image[5:50, 7:72]).permute(2, 0, 1)
        (ours,) = resample_parts([part], 24, "bicubic").int()
        theirs = torch.from_numpy(resample(image, Box(7, 5, 65, 45), 24)).int()
        assert (ours - theirs).abs().max() <= 1 and (ours != theirs).float().mean() < 0.02

    def test_an_image_of_the_right_size_is_shown_as_it_is(self) -> None:
        image = torch.from_numpy(noise(16, 16))
        for resampling in PILLOW:
            assert torch.equal(resample_parts([image.permute(2, 0, 1)], 16, resampling)[0], image)

    def test_blocks_change_nothing(self, monkeypatch) -> None:
        parts = [
            torch.from_numpy(noise(8 + 5 * i % 37, 9 + 7 * i % 31, i)).permute(2, 0, 1) for i in range(9)
        ]
        whole = resample_parts(parts, 11, "bicubic")
        monkeypatch.setattr(device_decode, "BLOCK", 3 * 2 * 20 * 20)
        assert len(list(device_decode._blocks([tuple(part.shape[1:]) for part in parts]))) > 3
        assert torch.equal(resample_parts(parts, 11, "bicubic"), whole)

    def test_weights_sum_to_one_and_stop_where_the_row_does(self) -> None:
        weights = filter_weights(torch.tensor([5, 90, 31]), 8, "lanczos")
        assert weights.shape == (3, 8, 90)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 8))
        assert not weights[0, :, 5:].any() and not weights[2, :, 31:].any()


def test_files_in_one_piece_of_memory() -> None:
    files = [File(3, 40, b"abc", (0, 0, 2, 2)), File(5, 41, memoryview(b"defgh"), (1, 0, 4, 3))]
    encoded = Encoded.of(files, 8, "bicubic")
    assert [bytes(file.tolist()) for file in encoded.files()] == [b"abc", b"defgh"]
    assert encoded.row.tolist() == [3, 5] and encoded.sample.tolist() == [40, 41]
    assert encoded.part.tolist() == [[0, 0, 2, 2], [1, 0, 4, 3]]


@pytest.fixture
def mixed(tmp_path):
    """40 samples of several shapes: two JPEGs for each PNG, some of them gray, progressive or of four colours."""
    images = []
    for i in range(40):
        pixels = np.asarray(Image.open(io.BytesIO(picture(i, size=(20 + i, 40 - i // 2)))))
        forms = {
            0: lambda p, i=i: picture(i, size=(22 + i, 24)),
            5: lambda p: jpeg(p.mean(2).astype(np.uint8)),
            6: lambda p: jpeg(p, progressive=True),
            7: cmyk,
        }
        kind = 0 if i % 3 == 0 else i % 9
        images.append(forms.get(kind, jpeg)(pixels))
    return write_parquet(tmp_path / "mixed.parquet", images, [i % 3 for i in range(40)])


def cmyk(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def both(mixed):
    """A loader whose processes decode, and one whose device does."""
    loaders = []

    def build(workers: int = 0, kernel: str = "fourier", **own):
        for decode in ("workers", "device"):
            section = ParquetSettings(
                train=mixed,
                test=mixed,
                **{"val_fraction": 0, "loader": "workers", "num_workers": workers, "image_size": 20} | own,
                decode=decode,
            )
            data = open_data(section, seed=0)
            loaders.append(build_loader(data, section, device="cpu", seed=3, kernel=kernel))
        return loaders[-2:]

    yield build
    for loader in loaders:
        loader.close()


class TestLoader:
    @pytest.mark.parametrize("augment", ["none", "crop-flip", "random-resized-crop"])
    @pytest.mark.parametrize(("kernel", "size"), [("fourier", None), ("resize", 12)])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_shows_what_the_processes_show(self, both, steps_of, augment, kernel, size, workers) -> None:
        """Within two levels: the smooth images here decode alike. Where processes decode at half the scale, ten."""
        halved = augment == "random-resized-crop" and kernel == "resize"
        steps = steps_of(40, 12, Stage(1.0, size=size))
        passes = [
            list(loader.train_batches(steps, epoch=2)) for loader in both(workers, kernel, augment=augment)
        ]
        assert len(passes[0]) == 4
        for theirs, ours in zip(*passes, strict=True):
            for key in ("index", "weight", "target"):
                assert torch.equal(theirs[key], ours[key])
            difference = (theirs["inputs"] - ours["inputs"]).abs()
            assert difference.max() < (5 * LEVELS if halved else LEVELS)
            assert difference.mean() < LEVELS / 5

    def test_evaluates_and_shows_positions_alike(self, both) -> None:
        theirs, ours = both(1)
        for one, other in zip(
            *(loader.eval_batches("test", batch_size=16) for loader in (theirs, ours)), strict=True
        ):
            assert torch.equal(one["target"], other["target"])
            assert (one["inputs"] - other["inputs"]).abs().max() < LEVELS
        images = [loader.train_images(torch.arange(3, 30)).int() for loader in (theirs, ours)]
        assert (images[0] - images[1]).abs().max() <= 2

    def test_replays_what_was_read(self, both, steps_of) -> None:
        steps = steps_of(40, 10, Stage(1.0, size=12, replay=2))
        passes = [list(loader.train_batches(steps, epoch=0)) for loader in both(0, "resize")]
        for theirs, ours in zip(*passes, strict=True):
            assert len(ours["index"]) == 20 and torch.equal(theirs["index"], ours["index"])
            assert (theirs["inputs"] - ours["inputs"]).abs().max() < LEVELS

    def test_leaves_to_the_device_what_every_decoder_knows(self, both, steps_of, monkeypatch) -> None:
        _, ours = both(0, "resize", augment="random-resized-crop")
        asked, shown = [], []
        original = Encoded.of

        def noted(files, *how):
            asked.extend(file.sample for file in files)
            shown.append(how)
            return original(files, *how)

        monkeypatch.setattr(Encoded, "of", staticmethod(noted))
        list(ours.eval_batches("test", batch_size=40))
        assert asked == [i for i in range(40) if i % 3 and i % 9 != 7]
        for size in (12, None):
            list(ours.train_batches(steps_of(40, 40, Stage(1.0, size=size)), epoch=0))
        assert shown == [(20, "bicubic"), (12, "lanczos"), (20, "bicubic")]

    def test_an_epoch_may_be_left_early_and_evaluated_within(self, both, steps_of) -> None:
        _, ours = both(2)
        steps = steps_of(40, 5)
        whole = [batch["inputs"] for batch in ours.train_batches(steps, epoch=0)]
        batches = ours.train_batches(steps, epoch=0)
        next(batches)
        batches.close()
        found = []
        for batch in ours.train_batches(steps, epoch=0):
            found.append(batch["inputs"])
            assert sum(len(b["index"]) for b in ours.eval_batches("test", batch_size=16)) == 40
        assert all(map(torch.equal, whole, found)) and len(found) == 8

    def test_is_told_from_the_other(self, both) -> None:
        theirs, ours = both(2)
        assert theirs.name == "2 loading processes"
        assert ours.name == "2 loading processes, JPEGs decoded by the device"

    def test_says_that_randaugment_does_nothing(self, both, steps_of, caplog) -> None:
        for loader, times in zip(both(randaugment=5), (0, 1), strict=True):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="raytrain_speedup.data"):
                for epoch in range(2):
                    list(loader.train_batches(steps_of(40, 40, FULL), epoch=epoch))
            assert caplog.text.count("RandAugment magnitudes have no effect on JPEGs") == times


def test_a_decoder_that_refuses_everything_is_told_of_once(both, steps_of, monkeypatch, caplog) -> None:
    def refuse(files, device):
        raise RuntimeError("not compiled with nvjpeg\nframes")

    theirs, ours = both()
    expected = list(theirs.train_batches(steps_of(40, 12), epoch=1))
    monkeypatch.setattr(device_decode, "_decode_jpegs", refuse)
    with caplog.at_level(logging.WARNING, logger="raytrain_speedup.data"):
        found = list(ours.train_batches(steps_of(40, 12), epoch=1))
    assert caplog.text.count("refuses what this process can read (not compiled with nvjpeg)") == 1
    for one, other in zip(expected, found, strict=True):
        assert (one["inputs"] - other["inputs"]).abs().max() < LEVELS


def bogus_scan(file: bytes) -> bytes:
    """A progressive JPEG whose second scan is of a component that there is none of: readable up to there."""
    scans = [found.start() for found in re.finditer(rb"\xff\xda", file)]
    assert len(scans) > 2
    return file[: scans[1] + 5] + b"\x99" + file[scans[1] + 6 :]


def test_a_file_that_the_device_refuses_costs_no_other(tmp_path, steps_of, caplog) -> None:
    files = [jpeg(noise(24, 24, i), progressive=True) for i in range(12)]
    files[5] = bogus_scan(files[5])
    assert is_whole_jpeg(files[5])
    table = write_parquet(tmp_path / "train.parquet", files, [i % 3 for i in range(12)])
    batches = []
    for decode in ("workers", "device"):
        section = ParquetSettings(
            train=table,
            test=table,
            image_size=24,
            val_fraction=0,
            loader="workers",
            num_workers=0,
            decode=decode,
            max_corrupt_fraction=0.2,
        )
        loader = build_loader(open_data(section, seed=0), section, device="cpu", seed=0)
        batches.append(list(loader.train_batches(steps_of(12, 6), epoch=0)))
        assert loader.skipped["train"].count == 1 and "row 5: " in loader.skipped["train"].names[0]
        assert "refuses what this process can read" not in caplog.text, "it is the file's fault"
        loader.close()
    for theirs, ours in zip(*batches, strict=True):
        assert torch.equal(theirs["index"], ours["index"]) and 5 not in ours["index"]
        assert torch.equal(theirs["target"], ours["target"])
        assert (theirs["inputs"] - ours["inputs"]).abs().max() < LEVELS


def test_masks_stay_with_their_images(tmp_path, steps_of) -> None:
    """One of the files is refused by the decoder: its mask goes with it."""
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(6):
            file = jpeg(noise(24, 24, i), progressive=True)
            (tmp_path / split / "images" / f"{i}.jpg").write_bytes(bogus_scan(file) if i == 2 else file)
            mask = Image.fromarray(np.full((24, 24), i, dtype=np.uint8))
            mask.save(tmp_path / split / "masks" / f"{i}.png")
    section = MaskFolderSettings(
        root=tmp_path,
        classes=6,
        image_size=24,
        val_fraction=0,
        augment="none",
        loader="workers",
        num_workers=0,
        decode="device",
        max_corrupt_fraction=0.5,
    )
    loader = build_loader(open_data(section, seed=0), section, device="cpu", seed=0)
    (batch,) = loader.train_batches(steps_of(6, 6), epoch=0)
    loader.close()
    assert sorted(batch["index"].tolist()) == [0, 1, 3, 4, 5]
    for index, mask in zip(batch["index"].tolist(), batch["target"], strict=True):
        assert (mask == index).all()
