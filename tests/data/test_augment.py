"""Each whole-batch operation against the plain way of doing it to one image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from raytrain_speedup import randomness
from raytrain_speedup.data import augment

N, SIZE = 40, 12
IMAGES = torch.randint(
    0, 256, (N, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INDEX = torch.tensor([3, 39, 0, 17, 3, 22])
FLOATS = torch.randn(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("padding", [0, 1, 4, 11])
@pytest.mark.parametrize("flip", [None, "random"])
def test_shift_is_a_crop_of_the_reflected_image(padding, flip) -> None:
    found = augment.shift_and_flip(IMAGES, INDEX, INDEX, seed=5, epoch=2, padding=padding, flip=flip)
    random = randomness.bits(INDEX, seed=5, epoch=2, streams=(augment.SHIFT_Y, augment.SHIFT_X, augment.FLIP))
    for row, index in enumerate(INDEX.tolist()):
        image = IMAGES[index].permute(2, 0, 1).float()[None]
        padded = F.pad(image, [padding] * 4, mode="reflect")[0]
        dy, dx = (int(randomness.below(random[axis, row], 2 * padding + 1)) for axis in (0, 1))
        expected = padded[:, dy : dy + SIZE, dx : dx + SIZE]
        if flip and randomness.below(random[2, row], 2):
            expected = expected.flip(2)
        assert torch.equal(found[row].float(), expected.permute(1, 2, 0))


def test_all_shifts_and_both_flips_occur_equally_often() -> None:
    gradient = torch.arange(SIZE).expand(1, SIZE, SIZE)
    both = torch.stack([gradient, gradient.transpose(1, 2)], dim=-1).to(torch.uint8)
    index = torch.arange(20_000)
    found = augment.shift_and_flip(both, index * 0, index, seed=0, epoch=0, padding=2, flip="random")
    centre = found[:, 5, 5].long()
    flipped = found[:, 5, 6, 0] < found[:, 5, 5, 0]
    assert abs(flipped.float().mean() - 0.5) < 0.02
    for values in (centre[:, 1], centre[~flipped][:, 0], centre[flipped][:, 0]):
        counts = torch.bincount(values)[values.min() :]
        assert len(counts) == 5 and (counts.float() / len(values) - 0.2).abs().max() < 0.025


def test_alternating_flips_show_an_image_and_its_flip_in_turn() -> None:
    index = torch.arange(4000)
    first, second, third = (
        augment.coins(index, seed=3, epoch=epoch, kind="alternating") for epoch in range(3)
    )
    assert torch.equal(first, ~second) and torch.equal(first, third)
    assert torch.equal(first, augment.coins(index, seed=3, epoch=0)) and 0.47 < first.float().mean() < 0.53
    assert not torch.equal(first, augment.coins(index, seed=4, epoch=0, kind="alternating"))
    images = torch.randint(0, 256, (50, 6, 6, 3), dtype=torch.uint8)
    shown = [
        augment.shift_and_flip(
            images, index[:50], index[:50], seed=3, epoch=epoch, padding=0, flip="alternating"
        )
        for epoch in (0, 1)
    ]
    assert torch.equal(shown[0], shown[1].flip(2))
    assert torch.equal(shown[0], torch.where(first[:50, None, None, None], images.flip(2), images))


def test_boxes_lie_inside_with_the_distribution_of_torchvision() -> None:
    index = torch.arange(5000)
    height, width = torch.full_like(index, 300), torch.full_like(index, 400)
    left, top, wide, high = augment.random_boxes(index, height, width, seed=0, epoch=0, min_scale=0.08)
    assert left.min() >= 0 and top.min() >= 0 and wide.min() > 0 and high.min() > 0
    assert (left + wide <= width).all() and (top + high <= height).all()
    area, aspect = (wide * high) / 120_000, wide / high
    assert area.min() > 0.078 and area.max() <= 1
    assert aspect.min() > 0.73 and aspect.max() < 1.36
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.empty(3, 300, 400)
        drawn = [v2.RandomResizedCrop(1).make_params([picture]) for _ in range(5000)]
    theirs = [torch.tensor([params[key] for params in drawn]) for key in ("left", "top", "width", "height")]
    for ours, expected in zip((left, top, wide, high), theirs, strict=True):
        levels = torch.linspace(0.05, 0.95, 7)
        assert torch.allclose(ours.float().quantile(levels), expected.float().quantile(levels), atol=8)


def test_a_box_of_an_image_too_long_for_any_try_is_its_centre() -> None:
    index = torch.arange(50)
    boxes = augment.random_boxes(index, index * 0 + 4, index * 0 + 4000, seed=0, epoch=0, min_scale=0.9)
    assert (boxes == torch.tensor([1997, 0, 5, 4])[:, None]).all()
    tiny = augment.random_boxes(index, index * 0 + 1, index * 0 + 1, seed=0, epoch=0, min_scale=0.08)
    assert (tiny == torch.tensor([0, 0, 1, 1])[:, None]).all()


def test_enlarging_a_box_is_interpolate_of_the_crop() -> None:
    boxes = torch.tensor([[0, 2, 5], [0, 3, 1], [12, 6, 7], [12, 6, 10]])
    found = augment.crop_and_resize(FLOATS[:3], boxes)
    assert torch.allclose(found[0], FLOATS[0], atol=1e-5)
    for row, (left, top, wide, high) in enumerate(boxes.T.tolist()):
        crop = FLOATS[row : row + 1, :, top : top + high, left : left + wide]
        expected = F.interpolate(crop, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        inner = slice(2, -2)  # at its border the box sees its neighbours instead of repeating itself
        assert torch.allclose(found[row][:, inner, inner], expected[:, inner, inner], atol=1e-4)


def test_cutout_blanks_one_square() -> None:
    index = torch.arange(N)
    found = augment.cutout(FLOATS, index, seed=0, epoch=0, size=4)
    blank = (found == 0).all(1)
    assert torch.equal(found[:, 0][~blank], FLOATS[:, 0][~blank])
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), rows * columns)
    assert rows.min() >= 2 and rows.max() == 4  # cut off at the border


def test_erasing_fills_rectangles_with_noise() -> None:
    x = torch.full((4000, 1, 16, 16), 50.0)
    found = augment.erase(x, torch.arange(4000), seed=0, epoch=0, probability=0.25)
    erased = (found != 50)[:, 0]
    hit = erased.any(2).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(erased.sum((1, 2)), rows * columns)
    fraction = erased[hit].float().mean((1, 2))
    assert fraction.min() > 0.01 and fraction.max() < 0.4
    fill = found[:, 0][erased]
    assert abs(fill.mean()) < 0.05 and abs(fill.std() - 1) < 0.05
    none = augment.erase(x, torch.arange(4000), seed=0, epoch=0, probability=0.0)
    assert torch.equal(none, x)


def test_no_operation_depends_on_the_rest_of_the_batch() -> None:
    key = {"seed": 1, "epoch": 4}
    index = torch.arange(N)

    def everything(rows: torch.Tensor) -> torch.Tensor:
        x = FLOATS[rows]
        boxes = augment.random_boxes(rows, rows * 0 + SIZE, rows * 0 + SIZE, **key, min_scale=0.08)
        x = augment.flip(augment.crop_and_resize(x, boxes), augment.coins(rows, **key))
        return augment.erase(augment.cutout(x, rows, **key, size=3), rows, **key, probability=0.5)

    whole = everything(index)
    assert torch.equal(everything(INDEX), whole[INDEX])
