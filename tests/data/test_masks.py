"""Images with masks: what the two sources read, what they refuse, and that a mask moves with its image."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import strategies
from PIL import Image
from pydantic import ValidationError

from raytrain_speedup.data import IGNORE_INDEX, Step, build_loader, open_data
from raytrain_speedup.data.decode import Box, resample_mask
from raytrain_speedup.data.masks import MaskFolderSettings, ParquetMasksSettings
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError

CLASSES, NONE, SIDE = 4, 9, 16
WHOLE = Stage(1.0)
GREY = 60
"""An image shows class c as the grey level 60 c: what a mask should say can be read off the image."""


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([level for colour in range(256) for level in (colour, 255 - colour, 7)])
    elif mode == "1":
        image = image.convert("1", dither=Image.Dither.NONE)
    image.save(stream, "PNG")
    return stream.getvalue()


def classes(number: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(H, W) classes in blocks of 4 x 4, another pattern for every number."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, CLASSES, (-(-height // 4), -(-width // 4)))
    return blocks.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.uint8)


def shown(mask: np.ndarray) -> bytes:
    """The image file that shows a mask."""
    return png((GREY * mask)[..., None].repeat(3, 2))


def table(path: Path, images: Sequence[bytes | None], masks: Sequence[bytes | None]) -> Path:
    columns = {"image": pa.array(images, pa.binary()), "mask": pa.array(masks, pa.binary())}
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """train (24) and test (6), images of 16 x 16 that show their masks."""
    return {
        name: table(
            tmp_path / f"{name}.parquet",
            [shown(classes(first + i)) for i in range(count)],
            [png(classes(first + i)) for i in range(count)],
        )
        for name, first, count in (("train", 0, 24), ("test", 100, 6))
    }


def settings(files: dict[str, Path], **more) -> ParquetMasksSettings:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "val_fraction": 0.25, "num_workers": 0}
    return ParquetMasksSettings(**files, classes=CLASSES, void=NONE, **plain | more)


def one(files: dict[str, Path], mask: bytes | None, image: bytes | None = None, **more):
    """A data set whose first training sample is another one."""
    images, masks = [image or shown(classes(0))] * 3, [mask, *[png(classes(0))] * 2]
    train = table(files["train"].parent / "one.parquet", images, masks)
    return settings({**files, "train": train}, val_fraction=0, **more)


class TestParquetMasks:
    def test_reads_images_and_masks(self, files) -> None:
        splits = open_data(settings(files), seed=0)
        assert splits.dense and (len(splits.train), len(splits.val), len(splits.test)) == (18, 6, 6)
        assert (splits.num_classes, splits.image_size) == (CLASSES, SIDE)
        for source in (splits.train, splits.val, splits.test):
            for index in range(len(source)):
                assert np.array_equal(source.decode(index)[..., 0], GREY * source.mask(index))

    def test_names_of_classes(self, files) -> None:
        assert open_data(settings(files), seed=0).class_names == ("0", "1", "2", "3")
        named = ParquetMasksSettings(**files, classes=("sky", "road", "tree", "car"))
        assert open_data(named, seed=0).class_names[1] == "road"

    @pytest.mark.parametrize("mode", [None, "P"])
    def test_void_becomes_the_class_of_no_class(self, files, mode) -> None:
        mask = classes(0)
        mask[:3] = NONE
        read = open_data(one(files, png(mask, mode)), seed=0).train.mask(0)
        assert (read[:3] == IGNORE_INDEX).all() and np.array_equal(read[3:], mask[3:])

    def test_masks_of_one_bit_and_of_sixteen(self, files) -> None:
        two = (classes(0) % 2).astype(np.uint8)
        assert np.array_equal(open_data(one(files, png(255 * two, "1")), seed=0).train.mask(0), two)
        wide = classes(0).astype(np.uint16)
        assert np.array_equal(open_data(one(files, png(wide)), seed=0).train.mask(0), classes(0))

    @pytest.mark.parametrize(
        ("mask", "reason"),
        [
            (png(np.full((SIDE, SIDE), 4, np.uint8)), "its mask: holds 4; expected 0 to 3, or data.void=9"),
            (png(np.full((SIDE, SIDE), 300, np.uint16)), "its mask: holds 300"),
            (shown(classes(0)), "its mask: has 3 channels; expected one"),
            (png(classes(0, 8, 12)), "the mask is 12 x 8 pixels, the image 16 x 16"),
            (b"no image", "its mask: this is no image file"),
            (None, "its mask: there is no image in this row"),
        ],
        ids=["class", "sixteen bits", "colours", "size", "bytes", "null"],
    )
    @pytest.mark.parametrize("loader", ["device", "workers"])
    def test_what_is_no_mask_is_named(self, files, mask, reason, loader) -> None:
        data = one(files, mask, loader=loader)
        steps = [Step(0, torch.arange(3), torch.ones(3), 3, 0.0, WHOLE)]
        with pytest.raises(UserError, match=rf"data\.train: 1 of 3 .*one\.parquet row 0: {reason}"):
            list(
                build_loader(open_data(data, seed=0), data, device="cpu", seed=0).train_batches(
                    steps, epoch=0
                )
            )

    def test_a_few_bad_masks_are_left_out(self, files) -> None:
        data = one(files, b"no image", max_corrupt_fraction=0.5)
        loader = build_loader(open_data(data, seed=0), data, device="cpu", seed=0)
        steps = [Step(0, torch.arange(3), torch.ones(3), 3, 0.0, WHOLE)]
        (batch,) = loader.train_batches(steps, epoch=0)
        assert batch["index"].tolist() == [1, 2] and len(batch["target"]) == 2

    def test_another_mask_is_another_data_set(self, files) -> None:
        mask = classes(0)
        first = open_data(one(files, png(mask)), seed=0).fingerprint
        mask[0, 0] = (mask[0, 0] + 1) % CLASSES
        assert open_data(one(files, png(mask)), seed=0).fingerprint != first

    @pytest.mark.parametrize("count", [1, 256])
    def test_how_many_classes(self, files, count) -> None:
        with pytest.raises(ValidationError, match=f"{count} classes; masks of one byte know 2 to 255"):
            ParquetMasksSettings(**files, classes=count)

    def test_a_missing_column(self, files) -> None:
        with pytest.raises(
            UserError, match=r"data\.mask_column: .* no column 'label'; expected one of: image, mask"
        ):
            open_data(settings(files, mask_column="label"), seed=0)

    def test_camvid(self, shared_data) -> None:
        paths = {split: shared_data / f"camvid-{split}.parquet" for split in ("train", "val", "test")}
        data = ParquetMasksSettings(**paths, classes=11, void=11, image_size=64)
        splits = open_data(data, seed=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (367, 101, 233)
        masks = build_loader(splits, data, device="cpu", seed=0).eval_batches("val", batch_size=101)
        assert set(next(iter(masks))["target"].unique().tolist()) == {*range(11), IGNORE_INDEX}


class TestMaskFolders:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """As NYUv2 is usually unpacked: image/SPLIT and seg13/SPLIT."""
        for split, count in (("train", 5), ("test", 2)):
            for kind, content in (("image", shown), ("seg13", png)):
                (tmp_path / kind / split).mkdir(parents=True)
                for i in range(count):
                    (tmp_path / kind / split / f"{i:05d}.png").write_bytes(content(classes(i)))
        return tmp_path

    def read(self, root: Path, **more):
        patterns = {"images": "image/{split}", "masks": "seg13/{split}"}
        return open_data(
            MaskFolderSettings(root=root, classes=CLASSES, val_fraction=0.2, **patterns | more), seed=0
        )

    def test_reads_images_and_masks(self, root) -> None:
        splits = self.read(root)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 1, 2)
        for index in range(4):
            assert np.array_equal(splits.train.decode(index)[..., 0], GREY * splits.train.mask(index))

    def test_a_validation_split_of_its_own(self, root) -> None:
        for kind in ("image", "seg13"):
            (root / kind / "test").rename(root / kind / "val")
            (root / kind / "test").mkdir()
            (root / kind / "test" / "x.png").write_bytes(png(classes(1)))
        splits = self.read(root)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (5, 2, 1)

    def test_folders_are_called_as_ade20ks(self, root) -> None:
        """images/training and images/validation, and no test split with masks: the validation split is it."""
        for kind in ("image", "seg13"):
            (root / kind / "test").rename(root / kind / "validation")
            (root / kind / "train").rename(root / kind / "training")
        splits = self.read(root)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 1, 2)

    def test_an_image_without_a_mask(self, root) -> None:
        (root / "seg13" / "train" / "00003.png").unlink()
        with pytest.raises(
            UserError, match=r"data\.masks: .*seg13/train has no '00003', which is in .*image/train"
        ):
            self.read(root)

    def test_two_files_of_one_name(self, root) -> None:
        (root / "seg13" / "train" / "00003.bmp").write_bytes(b"")
        with pytest.raises(
            UserError, match=r"data\.masks: .*seg13/train has 00003.bmp and 00003.png; expected one"
        ):
            self.read(root)

    def test_a_missing_folder(self, root) -> None:
        with pytest.raises(
            UserError, match=r"data\.masks: there is no folder .*/train/masks; expected the masks"
        ):
            self.read(root, masks="{split}/masks")

    def test_a_pattern_without_the_split(self, root) -> None:
        with pytest.raises(ValidationError, match=r"expected '\{split\}' in it"):
            self.read(root, masks="masks")


def agreement(batch) -> float:
    """Fraction of the pixels whose mask says what the image shows there; inputs are at the masks' size."""
    return float((batch["inputs"][:, 0] * 255 / GREY).round().eq(batch["target"]).float().mean())


@pytest.mark.parametrize(("loader", "workers"), [("device", 0), ("workers", 0), ("workers", 2)])
class TestMasksMoveWithTheirImages:
    @pytest.fixture
    def batches(self, files, loader, workers) -> Callable:
        def build(stage: Stage = WHOLE, epochs: int = 2, **more) -> list:
            data = settings(files, loader=loader, **{"num_workers": workers} | more)
            made = build_loader(open_data(data, seed=0), data, device="cpu", seed=0)
            index = torch.arange(18).split(6)
            steps = [
                Step(n, part, torch.ones(6), 6 * stage.replay, 0.0, stage) for n, part in enumerate(index)
            ]
            try:
                return [batch for epoch in range(epochs) for batch in made.train_batches(steps, epoch=epoch)]
            finally:
                made.close()

        return build

    @pytest.mark.parametrize("augment", ["none", "crop", "crop-flip"])
    def test_shifted_and_flipped(self, batches, augment) -> None:
        made = batches(augment=augment, padding=5)
        assert all(agreement(batch) == 1 for batch in made)
        assert all(batch["target"].dtype == torch.int64 for batch in made)
        moved = not torch.equal(made[0]["target"], made[3]["target"])
        assert moved == (augment != "none")

    def test_cropped_and_resized(self, batches) -> None:
        """At the borders of the blocks the image is a mixture, which the mask never is."""
        made = batches(augment="random-resized-crop", min_scale=0.3)
        assert all(agreement(batch) > 0.7 for batch in made)
        assert not torch.equal(made[0]["target"], made[3]["target"])

    def test_shown_again(self, batches) -> None:
        for batch in batches(Stage(1.0, replay=2), augment="crop-flip"):
            assert len(batch["target"]) == 12 and agreement(batch) == 1

    def test_masks_keep_their_size_in_a_stage(self, batches) -> None:
        (first, *_) = batches(Stage(1.0, size=8, magnitude=5), augment="crop-flip")
        assert first["inputs"].shape[2:] == (8, 8) and first["target"].shape[1:] == (SIDE, SIDE)

    def test_no_single_image_is_turned_without_its_mask(self, batches, caplog) -> None:
        plain, strong = batches(augment="none"), batches(Stage(1.0, magnitude=9), augment="none")
        assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(plain, strong, strict=True))
        assert "RandAugment magnitudes have no effect" in caplog.text


@pytest.mark.parametrize("loader", ["device", "workers"])
@pytest.mark.parametrize(("fit", "columns"), [("stretch", slice(None)), ("crop", slice(4, 20))])
def test_an_image_that_is_no_square(tmp_path, loader, fit, columns) -> None:
    mask = classes(0, 16, 24)
    train = table(tmp_path / "wide.parquet", [shown(mask)] * 2, [png(mask)] * 2)
    data = settings({"train": train, "test": train}, fit=fit, image_size=16, loader=loader, eval_crop=1.0)
    made = build_loader(open_data(data, seed=0), data, device="cpu", seed=0)
    (batch,) = made.eval_batches("test", batch_size=2)
    seen = mask[:, columns]
    middles = ((np.arange(16) + 0.5) / 16 * seen.shape[1]).astype(int)
    assert np.array_equal(batch["target"][0].numpy(), seen[:, middles])
    assert agreement(batch) > (0.99 if fit == "crop" else 0.6)


@hypothesis.given(
    strategies.integers(1, 40), strategies.integers(1, 40), strategies.integers(1, 50), strategies.data()
)
def test_a_resampled_mask_shows_the_nearest_pixel(height: int, width: int, size: int, data) -> None:
    mask = np.arange(height * width).reshape(height, width)
    left, top = data.draw(strategies.integers(0, width - 1)), data.draw(strategies.integers(0, height - 1))
    wide, high = (
        data.draw(strategies.integers(1, width - left)),
        data.draw(strategies.integers(1, height - top)),
    )
    got = resample_mask(mask, Box(left, top, wide, high), size)
    for i in {0, size // 2, size - 1}:
        row, column = top + (2 * i + 1) * high // (2 * size), left + (2 * i + 1) * wide // (2 * size)
        assert got[i, i] == mask[row, column]
