"""Every sample once, equal numbers of steps, whatever the sizes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.methods.pruning import FullData, constant_offsets, rank_bounds, shard
from raytrain_speedup.settings import UserError


@st.composite
def sizes(draw):
    world = draw(st.integers(1, 9))
    return draw(st.integers(1, 400)), draw(st.integers(world, 70)), world


@given(sizes())
def test_constant_offsets_cover_the_plan_in_steps_no_worker_goes_without(size):
    num_shown, batch_size, world = size
    offsets = constant_offsets(num_shown, batch_size, world)
    counts = offsets.diff()
    assert offsets.dtype == torch.int64
    assert offsets[0] == 0
    assert offsets[-1] == num_shown
    assert (counts[:-1] == batch_size).all()
    assert counts[-1] >= min(world, num_shown)
    assert counts[-1] < batch_size + world


@given(sizes())
def test_the_union_over_ranks_is_the_plan_in_its_order(size):
    num_shown, batch_size, world = size
    plan = FullData(num_shown, [1.0]).plan(0)
    shards = [shard(plan, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    assert len({len(part) for part in shards}) == 1
    steps = [[index for index, _ in step] for step in zip(*shards, strict=True)]
    assert torch.equal(torch.cat([index for step in steps for index in step]), plan.indices)
    for step, count in zip(steps, shards[0].counts.tolist(), strict=True):
        lengths = [len(index) for index in step]
        assert sum(lengths) == count
        assert max(lengths) - min(lengths) <= 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 9))
def test_rank_bounds_divide_steps_of_any_sizes(counts, world):
    offsets = torch.tensor([0, *counts]).cumsum(0)
    bounds = [rank_bounds(offsets, rank, world) for rank in range(world)]
    assert torch.equal(bounds[0][0], offsets[:-1])
    assert torch.equal(bounds[-1][1], offsets[1:])
    for (_, stops), (starts, _) in itertools.pairwise(bounds):
        assert torch.equal(stops, starts)


def test_a_remainder_smaller_than_the_world_joins_the_last_full_step():
    assert constant_offsets(67, 32, 4).tolist() == [0, 32, 67]
    assert constant_offsets(68, 32, 4).tolist() == [0, 32, 64, 68]
    assert constant_offsets(3, 32, 4).tolist() == [0, 3]


def test_iterating_starts_afresh_and_ends():
    """Fault 2 of the public implementation: its sampler resets itself, and the epoch never ends."""
    part = shard(FullData(100, [1.0]).plan(0), batch_size=16, rank=1, world=2)
    first = iter(part)
    next(first)
    assert len(list(part)) == len(part) == 7
    assert len(list(first)) == 6


def test_a_batch_smaller_than_the_world_is_refused():
    with pytest.raises(UserError, match="batch_size: 3 is too small for 4 workers"):
        constant_offsets(100, 3, 4)
