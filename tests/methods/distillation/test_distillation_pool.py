"""The pool of synthetic images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raytrain_speedup.methods.distillation.pool import Pool, to_uint8
from raytrain_speedup.settings import UserError

quick = settings(max_examples=25, deadline=None)  # a busy machine is no failure

SHAPE = (1, 2, 2)


def numbered(first: int, count: int) -> Tensor:
    """Images whose pixels all hold their number, modulo 256."""
    return (torch.arange(first, first + count) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(count, *SHAPE)


def numbers(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@quick
@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_it_holds_the_newest_images_in_order_and_no_more(capacity: int, batches: list[int]) -> None:
    pool, added = Pool(capacity, SHAPE), 0
    for count in batches:
        pool.add(numbered(added, count))
        added += count
    kept = numbers(numbered(0, added))[-capacity:]
    assert len(pool) == len(kept)
    assert numbers(pool.newest(capacity)) == kept
    assert numbers(pool.newest(3)) == kept[-3:]
    assert set(numbers(pool.sample(200, 0))) <= set(kept)


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.integers(1, 9))
def test_a_restored_pool_goes_on_as_the_saved_one(capacity: int, other: int, count: int, more: int) -> None:
    pool = Pool(capacity, SHAPE)
    pool.add(numbered(0, count))
    same, resized = Pool(capacity, SHAPE), Pool(other, SHAPE)
    same.load_state_dict(pool.state_dict())
    resized.load_state_dict(pool.state_dict())
    assert numbers(resized.newest(other)) == numbers(pool.newest(other))
    for each in (pool, same):
        each.add(numbered(count, more))
    assert torch.equal(pool.newest(capacity), same.newest(capacity))


@pytest.mark.parametrize("count", [3, 8, 11])
def test_the_same_draw_after_a_restore(count: int) -> None:
    """Also where the ring has come round, and stands elsewhere than the restored one."""
    pool, restored = Pool(8, SHAPE), Pool(8, SHAPE)
    pool.add(numbered(0, count))
    pool.add(numbered(count, 3))
    restored.load_state_dict(pool.state_dict())
    assert torch.equal(pool.sample(64, 1, 2), restored.sample(64, 1, 2))
    assert not torch.equal(pool.sample(64, 1, 2), pool.sample(64, 1, 3))


def test_every_image_is_drawn_about_equally_often() -> None:
    pool = Pool(10, SHAPE)
    pool.add(numbered(0, 10))
    counts = torch.bincount(pool.sample(10_000, 0)[:, 0, 0, 0].long())
    assert counts.min() > 880 and counts.max() < 1120  # 1000 expected, 30 standard deviation


def test_pixels_are_rounded_not_truncated() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(to_uint8(levels), torch.arange(256, dtype=torch.uint8))
    assert to_uint8(torch.tensor([0.5, 0.999, -0.2, 1.2, 1.6 / 255])).tolist() == [128, 255, 0, 255, 2]


def test_adding_floats_keeps_them_to_half_a_level() -> None:
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    pool = Pool(5, SHAPE)
    pool.add(images)
    assert (pool.newest(5) / 255 - images).abs().max() <= 0.5 / 255 + 1e-7


def test_images_of_another_shape_are_refused() -> None:
    pool = Pool(4, SHAPE)
    with pytest.raises(UserError, match=r"\(3, 2, 2\).*\(1, 2, 2\)"):
        pool.load_state_dict({"images": torch.zeros(2, 3, 2, 2, dtype=torch.uint8)})
