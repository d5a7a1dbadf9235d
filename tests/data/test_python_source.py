"""A data set of the user's own: its forms of images and targets, and what is said of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.python import PythonSettings, PythonSource, known_targets, pixels, read_targets
from raytrain_speedup.settings import UserError
from raytrain_speedup.user_code import named

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)
COLOUR = np.stack([GRAY, GRAY + 64, GRAY + 128], axis=2)


class Items:
    """Items as they are given; `reads` counts what was asked for."""

    def __init__(self, items, targets=None):
        self.items, self.reads = items, 0
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Stream(torch.utils.data.IterableDataset):
    """A stream that knows its length; torch's base class has a `__getitem__` that raises."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([(GRAY, 0)] * 4)


def settings(train, test=None, val=None, **keys) -> PythonSettings:
    sets = {"train": train, "test": test if test is not None else train, "val": val}
    one = {"mean": (0.5,), "std": (0.5,), "augment": "none", "loader": "device"}
    return PythonSettings(dataset=named(lambda split: sets[split]), **one | keys)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GRAY, GRAY[..., None]),
        (COLOUR, COLOUR),
        (Image.fromarray(GRAY), GRAY[..., None]),
        (Image.fromarray(COLOUR), COLOUR),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        ((torch.from_numpy(COLOUR).permute(2, 0, 1) - 0.4).clamp_min(0) / 255, COLOUR),
    ],
    ids=["array HW", "array HWC", "PIL gray", "PIL colour", "uint8 CHW", "float CHW"],
)
def test_every_form_of_an_image_gives_the_same_pixels(image, expected) -> None:
    assert np.array_equal(pixels(image), expected)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((1, 8, 8), 2.6), "the image holds 2.6 to 2.6; expected 0 to 1: data.mean and data.std"),
        (torch.zeros(8, 8), "the image is a tensor of shape (8, 8); expected (C, H, W)"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), "the image is a tensor of torch.int64; expected uint8"),
        (GRAY.astype(float), "the image is a ndarray of float64; expected a PIL image, a uint8 array"),
        (GRAY[0], "the image is of shape (8,); expected (H, W)"),
    ],
)
def test_other_forms_are_refused(image, said) -> None:
    with pytest.raises(ValueError) as error:
        pixels(image)
    assert said in str(error.value)


def test_a_pil_image_has_the_channels_of_its_data_set() -> None:
    gray, colour = Image.fromarray(GRAY), Image.fromarray(np.repeat(GRAY[..., None], 3, axis=2))
    assert np.array_equal(pixels(gray, 3), np.asarray(colour))
    assert np.array_equal(pixels(colour, 1), GRAY[..., None])


def test_targets_are_known_without_decoding() -> None:
    train = Items([(GRAY, index % 3) for index in range(90)], [index % 3 for index in range(90)])
    splits = open_data(settings(train, Items([(GRAY, 2)] * 3), val_fraction=0.2), seed=0)
    assert train.reads < 30  # the first image, three to compare targets, three for the fingerprint
    assert splits.num_classes == 3
    assert (len(splits.train), len(splits.val), len(splits.test)) == (72, 18, 3)
    assert np.bincount(splits.val.targets).tolist() == [6, 6, 6]


def test_targets_are_read_once_where_nothing_tells_them() -> None:
    data = Items([(GRAY, torch.tensor(index % 2)) for index in range(10)])
    assert read_targets(data, "mine").tolist() == [0, 1] * 5
    assert data.reads == 10


def test_targets_of_subsets_and_tensors_are_those_of_their_items() -> None:
    images, targets = torch.zeros(6, 1, 8, 8), torch.arange(6)
    whole = torch.utils.data.TensorDataset(images, targets)
    part = torch.utils.data.Subset(torch.utils.data.Subset(whole, [5, 3, 1]), [2, 0])
    assert known_targets(part).tolist() == [1, 5] == [int(part[0][1]), int(part[1][1])]


def test_batches_hold_the_images_and_targets_of_their_index() -> None:
    images = [np.full((8, 8), index, dtype=np.uint8) for index in range(40)]
    data = Items(
        [(image, index % 2) for index, image in enumerate(images)], [index % 2 for index in range(40)]
    )
    how = settings(data, val_fraction=0.0)
    splits = open_data(how, seed=0)
    loader = build_loader(splits, how, device="cpu", seed=0)
    for batch in loader.eval_batches("test", batch_size=16):
        assert torch.equal(batch["target"], batch["index"] % 2)
        assert torch.allclose((batch["inputs"][:, 0, 0, 0] * 0.5 + 0.5) * 255, batch["index"].float())


def test_a_sample_that_raises_is_left_out_and_counted() -> None:
    items = [(GRAY, index % 2) for index in range(200)]
    items[7] = OSError("disk on fire")
    data = Items(items, [index % 2 for index in range(200)])
    how = settings(data, val_fraction=0.0)
    loader = build_loader(open_data(how, seed=0), how, device="cpu", seed=0)
    shown = torch.cat([batch["index"] for batch in loader.eval_batches("test", batch_size=64)])
    assert len(shown) == 199 and 7 not in shown
    assert loader.skipped["test"].count == 1
    assert "disk on fire" in loader.skipped["test"].names[0]


def test_masks_are_targets_of_pixels() -> None:
    mask = np.arange(64).reshape(8, 8) % 3
    mask[0, 0] = 255
    data = Items([(GRAY, mask)] * 20)
    how = settings(data, classes=3, val_fraction=0.0)
    splits = open_data(how, seed=0)
    assert splits.dense and splits.num_classes == 3
    batch = next(build_loader(splits, how, device="cpu", seed=0).eval_batches("test", batch_size=4))
    assert torch.equal(batch["target"][0], torch.from_numpy(mask))
    with pytest.raises(UserError, match=r"^data.classes: not set, and the targets are masks"):
        open_data(settings(data), seed=0)


def test_a_mask_is_that_of_its_sample_and_of_its_classes() -> None:
    masks = [np.full((8, 8), value) for value in (1, 2, 3)]
    source = PythonSource(
        Items([(GRAY, mask) for mask in masks]), np.zeros(3), "scans", channels=1, num_classes=3
    )
    source.decode(0)
    assert np.array_equal(source.mask(1), masks[1]) and np.array_equal(source.mask(0), masks[0])
    with pytest.raises(CorruptSample, match="its mask holds 3; expected 0 to 2, or 255"):
        source.mask(2)


@pytest.mark.parametrize(
    ("train", "keys", "said"),
    [
        (5, {}, "gives a int; expected a map-style data set"),
        (
            Stream(),
            {},
            "gives a Stream; expected a map-style data set, with __len__ and __getitem__: pruning asks for",
        ),
        (Items([]), {}, "has no samples"),
        (Items([(GRAY, 0, 1)]), {}, "it is 3 values; expected a pair, (image, target)"),
        (Items([(GRAY, 0.5)] * 4), {}, "has the target 0.5; expected a class, an int"),
        (Items([(GRAY, 4)] * 4, [4] * 4), {"classes": 3}, "has a target 4; expected classes 0 to 2"),
        (Items([(GRAY, -1)] * 4, [-1] * 4), {"classes": 3}, "has a target -1; expected classes 0 to 2"),
        (Items([(GRAY, 0)] * 3 + [(GRAY, 1)], [0] * 4), {}, "sample 3 has the target 1, and 0 in `targets`"),
        (Items([(GRAY, 1)] * 4, [0] * 4), {}, "has the target 1, and 0 in `targets`; expected the same"),
        (Items([(GRAY, 1)] * 4, [1] * 3), {}, "has 4 samples and 3 targets; expected one each"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_one_line(train, keys, said) -> None:
    with pytest.raises(UserError) as error:
        open_data(settings(train, **keys), seed=0)
    assert str(error.value).startswith("data.dataset: ")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_image_that_changes_between_reads_is_refused() -> None:
    class Random(Items):
        def __getitem__(self, index):
            return np.random.default_rng().integers(0, 255, (8, 8), dtype=np.uint8), 0

    with pytest.raises(UserError, match="is another image whenever it is read"):
        open_data(settings(Random([0] * 8, [0] * 8)), seed=0)
