"""Images with boxes: what the two sources read, what they refuse, and that boxes move with their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import find_objects, label
from test_masks import WHOLE, png, shown, table
from torch import Tensor

from raytrain_speedup.data import Step, build_loader, open_data
from raytrain_speedup.data.boxes import MIN_VISIBLE, flip_boxes, move_boxes
from raytrain_speedup.data.coco import CocoSettings
from raytrain_speedup.data.mask_boxes import ParquetMaskBoxesSettings, mask_boxes
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError

SIDE = 48
PLAIN: dict[str, Any] = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "num_workers": 0,
    "image_size": SIDE,
}


def write_coco(
    root: Path, train: dict[str, list[list[float]]], *, change: dict[str, Any] | None = None, wide: int = SIDE
) -> Path:
    """Images that are dark but for their boxes, (left, top, width, height), by file name; one for test.

    Args:
        change: keys of the first annotation of train.
        wide: pixels of an image, which is `SIDE` high.
    """
    (root / "annotations").mkdir()
    for split, files in (("train", train), ("test", {"t.png": [[4, 4, 8, 8]]})):
        (root / split).mkdir()
        images, annotations = [], []
        for number, (name, boxes) in enumerate(files.items()):
            pixels = np.zeros((SIDE, wide, 3), np.uint8)
            for left, top, width, height in boxes:
                pixels[int(top) : int(top + height), int(left) : int(left + width)] = 255
                annotations.append(
                    {"image_id": number, "category_id": 3, "bbox": [left, top, width, height], "iscrowd": 0}
                )
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": number, "file_name": name})
        if split == "train" and change:
            annotations[0] |= change
        file = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "white"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(file))
    return root


def coco(root: Path, **more: Any) -> CocoSettings:
    return CocoSettings(root=root, val_fraction=0, **PLAIN | more)


ONE_EACH = {f"{i}.png": [[6.0 + i % 5, 8.0 + i % 7, 14.0 + i % 3, 20.0]] for i in range(12)} | {
    "none.png": []
}


def batch_of(settings: Any, stage: Stage = WHOLE, kernel: str = "fourier") -> dict[str, Tensor]:
    splits = open_data(settings, seed=0)
    loader = build_loader(splits, settings, device="cpu", seed=0, kernel=kernel)
    count = len(splits.train)
    (batch,) = loader.train_batches(
        [Step(0, torch.arange(count), torch.ones(count), count, 0.0, stage)], epoch=3
    )
    loader.close()
    return batch


def seen(image: Tensor) -> tuple[list[float], list[float]]:
    """Where what is bright has its centre, and half its width and height, of an image (C, H, W) with one object."""
    centre, half = [], []
    for axis in (1, 0):  # columns, then rows
        profile = image.mean(0).sum(1 - axis).double()
        centre.append(float((profile * (torch.arange(len(profile)) + 0.5)).sum() / profile.sum()))
        half.append(float(profile.sum() / profile.topk(3).values.mean()) / 2)
    return centre, half


class TestMoving:
    @pytest.mark.parametrize("loader", ["device", "workers"])
    @pytest.mark.parametrize(
        "augment", ["none", "crop", "crop-flip", "crop-alternating-flip", "random-resized-crop"]
    )
    @pytest.mark.parametrize(
        ("size", "kernel"), [(None, "fourier"), (24, "fourier"), (24, "aligned"), (32, "resize")]
    )
    def test_boxes_are_where_their_objects_are_shown(
        self, tmp_path: Path, loader: str, augment: str, size: int | None, kernel: str
    ) -> None:
        """By the pixels of the inputs. A kernel's place for them would be a quarter of a pixel off in another's."""
        settings = coco(
            write_coco(tmp_path, ONE_EACH), augment=augment, padding=5, loader=loader, min_scale=0.6
        )
        batch = batch_of(settings, Stage(1.0, size=size), kernel)
        checked = 0
        for image, rows in zip(batch["inputs"], batch["target"], strict=True):
            (box,) = rows
            if (
                box[4] and box[:4].min() > 2 and box[:4].max() < image.shape[-1] - 2
            ):  # all of it, and no reflection
                centre, half = seen(image)
                assert ((box[:2] + box[2:4]) / 2).tolist() == pytest.approx(centre, abs=0.1)
                assert ((box[2:4] - box[:2]) / 2).tolist() == pytest.approx(half, abs=0.4)
                checked += 1
            else:
                assert not box.any() or augment != "none"
        assert checked >= (12 if augment == "none" else 5)
        assert batch["target"].dtype == torch.float32 and not batch["target"][-1].any()

    def test_both_loaders_show_the_same(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, ONE_EACH)
        first, second = (batch_of(coco(root, loader=loader, padding=7)) for loader in ("device", "workers"))
        assert torch.equal(first["target"], second["target"])
        torch.testing.assert_close(first["inputs"], second["inputs"])

    def test_what_is_hardly_left_of_an_object_is_none(self) -> None:
        """Cut at the left border: a little more than a quarter stays, a little less does not."""
        boxes = torch.tensor([[[-7.4, 2, 2.6, 6, 1], [-7.6, 2, 2.4, 6, 2], [0, 0, 0, 0, 0]]])
        scale, offset = torch.ones(1, 2), torch.zeros(1, 2)
        moved = move_boxes(boxes, scale, offset, 10)
        assert MIN_VISIBLE == 0.25
        torch.testing.assert_close(moved[0, 0], torch.tensor([0, 2, 2.6, 6, 1]))
        assert not moved[0, 1:].any()

    def test_padding_is_no_box_after_a_flip(self) -> None:
        boxes = torch.tensor([[[1.0, 2, 4, 6, 1], [0, 0, 0, 0, 0]]]).repeat(2, 1, 1)
        flipped = flip_boxes(boxes, torch.tensor([True, False]), 10)
        assert flipped[0].tolist() == [[6, 2, 9, 6, 1], [0, 0, 0, 0, 0]] and torch.equal(flipped[1], boxes[1])

    @pytest.mark.parametrize(
        ("fit", "expected"), [("stretch", [8, 8, 15, 28]), ("crop", [0, 8, 6, 28])], ids=str
    )
    def test_an_image_becomes_a_square(self, tmp_path: Path, fit: str, expected: list[float]) -> None:
        """Of 96 x 48 pixels: distorted, or its middle."""
        root = write_coco(tmp_path, {"a.png": [[16, 8, 14, 20]]}, wide=2 * SIDE)
        settings = coco(root, augment="none", fit=fit, eval_crop=1.0)
        assert batch_of(settings)["target"][0, 0].tolist() == [*expected, 1]


class TestCoco:
    def test_reads_images_and_boxes(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, {"a.png": [[1, 2, 10, 12], [20, 20, 5, 5]], "b.png": []})
        splits = open_data(coco(root), seed=0)
        assert (splits.targets, splits.class_names, splits.train.max_boxes) == ("boxes", ("white",), 2)
        assert splits.train.boxes(0).tolist() == [[1, 2, 11, 14, 1], [20, 20, 25, 25, 1]]
        assert splits.train.boxes(1).shape == (0, 5)
        assert splits.train.subset(np.array([1, 0])).boxes(1).tolist() == splits.train.boxes(0).tolist()

    def test_classes_are_the_categories_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, {"a.png": [[1, 2, 10, 12]]})
        path = root / "annotations" / "instances_train.json"
        file = json.loads(path.read_text())
        file["categories"] += [{"id": 90, "name": "z"}, {"id": 1, "name": "a"}]
        path.write_text(json.dumps(file))
        splits = open_data(coco(root), seed=0)
        assert splits.class_names == ("a", "white", "z") and splits.train.boxes(0)[0, 4] == 2

    def test_a_crowd_has_its_label_below_zero(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, {"a.png": [[1, 2, 10, 12]]}, change={"iscrowd": 1})
        assert open_data(coco(root), seed=0).train.boxes(0)[0, 4] == -1

    def test_another_box_is_another_data_set(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
        first = write_coco(tmp_path / "a", {"a.png": [[1, 2, 10, 12]]})
        second = write_coco(tmp_path / "b", {"a.png": [[1, 2, 10, 12]]}, change={"bbox": [1, 2, 10, 12.5]})
        one, other = (open_data(coco(root), seed=0).fingerprint for root in (first, second))
        assert one != other

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"bbox": [40, 2, 10, 12]}, r"one from \(40, 2\) to \(50, 14\) is not in the image of 48 x 48"),
            ({"bbox": [1, 2, 0, 12]}, r"one at \(1, 2\) of 0 x 12 pixels has no area"),
            ({"bbox": [1, 2, 10]}, r"\[1, 2, 10\] is no box; expected left, top, width and height"),
            ({"bbox": [1, 2, float("nan"), 3]}, "is no box"),
            ({"category_id": 4}, "category 4 is not one of the training data's 1"),
        ],
        ids=["outside", "no area", "three numbers", "not a number", "category"],
    )
    @pytest.mark.parametrize("loader", ["device", "workers"])
    def test_an_image_whose_boxes_make_no_sense_is_named_and_left_out(
        self, tmp_path: Path, change: dict[str, Any], reason: str, loader: str
    ) -> None:
        root = write_coco(tmp_path, {"a.png": [[1, 2, 10, 12]], "b.png": [[3, 3, 9, 9]]}, change=change)
        with pytest.raises(UserError, match=rf"data\.train: 1 of 2 .*a\.png: its boxes: .*{reason}"):
            batch_of(coco(root, loader=loader))
        kept = batch_of(coco(root, loader=loader, max_corrupt_fraction=0.5))
        assert kept["index"].tolist() == [1] and kept["target"].shape == (1, 1, 5)

    def test_rounding_at_the_border_is_no_fault(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, {"a.png": [[30, 2, 10, 12]]}, change={"bbox": [30, 2, 18.4, 12]})
        assert batch_of(coco(root, augment="none"))["target"][0, 0].tolist() == [30, 2, 48, 14, 1]

    def test_a_missing_image(self, tmp_path: Path) -> None:
        root = write_coco(tmp_path, {"a.png": [[1, 2, 10, 12]], "b.png": []})
        (root / "train" / "b.png").unlink()
        with pytest.raises(UserError, match=r"data\.train: 1 of 2 .*b\.png: No such file"):
            batch_of(coco(root))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is no JSON file"),
            ("[]", "has no list 'images'"),
            ('{"images": [], "categories": [], "annotations": {}}', "has no list 'annotations'"),
            ('{"images": [{"id": 1}], "categories": [], "annotations": []}', "entry 0 of 'images'"),
            ('{"images": [], "categories": [], "annotations": []}', "has no categories"),
            (
                '{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": [{"image_id": 5}]}',
                "an annotation of image 5, which is not among its images",
            ),
            (
                '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}], '
                '"categories": [{"id": 1, "name": "a"}], "annotations": []}',
                "several images of one id",
            ),
        ],
    )
    def test_a_file_of_another_form_is_one_line(self, tmp_path: Path, content: str, message: str) -> None:
        root = write_coco(tmp_path, {"a.png": []})
        (root / "annotations" / "instances_train.json").write_text(content)
        with pytest.raises(UserError, match=rf"data\.annotations: .*instances_train\.json.*{message}"):
            open_data(coco(root), seed=0)

    def test_where_files_are_missing(self, tmp_path: Path) -> None:
        with pytest.raises(
            UserError, match=r"data\.annotations: cannot read .*instances_train\.json: No such"
        ):
            open_data(coco(tmp_path), seed=0)
        with pytest.raises(ValidationError, match=r"expected '\{split\}' in it"):
            coco(tmp_path, images="train2017")
        root = write_coco(tmp_path, {"a.png": []})
        (root / "test").rename(root / "elsewhere")
        with pytest.raises(UserError, match=r"data\.images: there is no folder .*test; expected the images"):
            open_data(coco(root), seed=0)


class TestMaskBoxes:
    def test_regions_of_a_class_are_objects(self) -> None:
        """As scipy finds them in a mask of one class at a time; by hand here."""
        mask = np.zeros((12, 16), np.uint8)
        mask[1:4, 2:6] = 1
        mask[4:6, 6:8] = 1  # touches the first at a corner
        mask[8:12, 10:16] = 2
        mask[0, 15] = 2  # too small
        found = mask_boxes(mask, [2, 1], min_area=2)
        assert found.tolist() == [[10, 8, 16, 12, 1], [2, 1, 8, 6, 2]]

    def test_reads_parquet_files(self, tmp_path: Path) -> None:
        mask = np.zeros((16, 16), np.uint8)
        mask[3:9, 5:12] = 2
        files = {
            split: table(tmp_path / f"{split}.parquet", [shown(mask)] * 2, [png(mask), b"no image"])
            for split in ("train", "test")
        }
        keys: dict[str, Any] = {"classes": ("sky", "road", "car"), "val_fraction": 0, **PLAIN}
        data = ParquetMaskBoxesSettings(**files, objects=("car",), **keys)
        splits = open_data(data, seed=0)
        assert splits.class_names == ("car",) and splits.train.boxes(0).tolist() == [[5, 3, 12, 9, 1]]
        with pytest.raises(
            UserError, match=r"train\.parquet row 1: its boxes: its mask: this is no image file"
        ):
            batch_of(data)
        with pytest.raises(ValidationError, match="there is no class 'tram'; expected some of"):
            ParquetMaskBoxesSettings(**files, objects=("tram",), **keys)

    def test_camvid(self, shared_data: Path) -> None:
        """All regions of 100 pixels, counted another way."""
        paths = {split: shared_data / f"camvid-{split}.parquet" for split in ("train", "val", "test")}
        data = ParquetMaskBoxesSettings(
            **paths, classes=tuple("abcdefghijk"), void=11, objects=("i",), min_area=100, image_size=64
        )
        splits = open_data(data, seed=0)
        masks = data.masked(data.open_splits()["val"])
        counted = 0
        for index in range(len(masks)):
            regions, _ = label(masks.mask(index) == 8, np.ones((3, 3)))
            counted += sum(
                (regions[part] == k).sum() >= 100 for k, part in enumerate(find_objects(regions), 1)
            )
        assert sum(len(splits.val.boxes(index)) for index in range(len(splits.val))) == counted > 100
