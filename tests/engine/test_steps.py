"""From a plan to steps: every sample once at most, ranks in step, the same whatever the number of workers."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.data.batch import Step
from raytrain_speedup.engine.steps import epoch_steps
from raytrain_speedup.methods.curriculum.base import FULL, Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning import FullData, InfoBatch, equal_epochs


def of_all_ranks(world: int, *, kept: int, batch: int, epochs: float, epoch: int) -> list[list[Step]]:
    budget = Budget(epochs, kept, [FULL])
    plan = FullData(kept, budget.epoch_ends(), seed=1).plan(epoch)
    return [epoch_steps(plan, budget, epoch, batch_size=batch, rank=r, world=world) for r in range(world)]


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 8), st.floats(0.3, 3.0), st.data())
def test_ranks_share_every_step_and_show_no_sample_twice(
    kept: int, world: int, per_rank: int, epochs: float, data: st.DataObject
):
    epoch = data.draw(st.integers(0, math.ceil(epochs) - 1))
    ranks = of_all_ranks(world, kept=kept, batch=world * per_rank, epochs=epochs, epoch=epoch)
    assert len({len(steps) for steps in ranks}) == 1
    shown = torch.cat([step.index for steps in ranks for step in steps])
    assert len(shown.unique()) == len(shown) <= kept
    for together in zip(*ranks, strict=True):
        assert sum(len(step.index) for step in together) == together[0].count
        assert len({(s.number, s.count, s.progress, s.stage) for s in together}) == 1
        assert min(len(step.index) for step in together) >= min(2, per_rank, kept // world)
    if epoch < math.floor(epochs):
        assert len(shown) == kept


@given(st.integers(8, 300), st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_another_number_of_workers_shows_the_rest(
    kept: int, per_rank: int, worlds: list[int], data: st.DataObject
):
    """Whoever goes on, and wherever: no sample twice, none left out but fewer than a step of all workers takes."""
    budget, batch = Budget(2, kept, [FULL]), 12 * per_rank
    plan = FullData(kept, budget.epoch_ends(), seed=1).plan(1)
    shown: list[int] = []
    taken = (0, 0)
    for world in worlds:
        ranks = [
            epoch_steps(plan, budget, 1, batch_size=batch, rank=rank, world=world, taken=taken)
            for rank in range(world)
        ]
        stop = data.draw(st.integers(0, len(ranks[0]))) if world != worlds[-1] else len(ranks[0])
        for together in list(zip(*ranks, strict=True))[:stop]:
            assert together[0].number == taken[0]
            assert min(len(step.index) for step in together) >= min(2, kept // world)
            assert together[0].progress == budget.progress(1, taken[1] / kept)
            shown += [int(index) for step in together for index in step.index]
            taken = taken[0] + 1, taken[1] + together[0].count
    assert len(set(shown)) == len(shown) == taken[1]
    assert shown == plan.indices[: taken[1]].tolist()
    if stop == len(ranks[0]):
        assert kept - taken[1] < max(2 * worlds[-1], 1)


@given(st.integers(20, 300), st.floats(0.2, 3.0))
def test_the_last_epoch_is_shown_as_far_as_the_budget_reaches(kept: int, epochs: float):
    """To a sample; two are the least."""
    budget = Budget(epochs, kept, [FULL])
    last = len(budget.epoch_ends()) - 1
    (steps,) = of_all_ranks(1, kept=kept, batch=8, epochs=epochs, epoch=last)
    assert sum(step.count for step in steps) == max(2, round((epochs - last) * kept))
    assert steps[-1].progress < 1


@given(st.integers(2, 6), st.integers(50, 300))
def test_the_steps_of_many_workers_are_those_of_one(world: int, kept: int):
    whole = of_all_ranks(1, kept=kept, batch=world * 4, epochs=2, epoch=1)[0]
    parts = of_all_ranks(world, kept=kept, batch=world * 4, epochs=2, epoch=1)
    joined = [torch.cat([rank[n].index for rank in parts]) for n in range(len(parts[0]))]
    assert torch.equal(torch.cat(joined), torch.cat([step.index for step in whole]))
    for step, index in zip(whole, joined, strict=False):
        if len(index) == step.count:  # all but a remainder that joined the step before
            assert torch.equal(index, step.index)


def test_one_and_two_workers_plan_the_same_epoch_from_the_same_state():
    """The state travels: what one worker observed, two load."""
    first = InfoBatch(100, 4, prune_ratio=0.5)
    first.plan(0)
    first.observe(torch.arange(100), torch.linspace(0, 1, 100) ** 2)
    second = InfoBatch(100, 4, prune_ratio=0.5)
    second.load_state_dict(first.state_dict())
    budget = Budget(4, 100, [FULL])
    one = epoch_steps(first.plan(1), budget, 1, batch_size=20)
    two = [epoch_steps(second.plan(1), budget, 1, batch_size=20, rank=rank, world=2) for rank in (0, 1)]
    for step, a, b in zip(one, *two, strict=True):
        assert torch.equal(step.index, torch.cat([a.index, b.index]))
        assert torch.equal(step.weight, torch.cat([a.weight, b.weight]))
        assert step.count == a.count == b.count == len(step.index)


def test_progress_goes_by_shown_share_so_a_pruned_epoch_takes_as_much_of_it():
    budget = Budget(2, 80, [FULL])
    pruner = InfoBatch(80, equal_epochs(2), prune_ratio=0.5, anneal_from=1.0)
    pruner.observe(torch.arange(80), torch.arange(80).float())
    steps = epoch_steps(pruner.plan(1), budget, 1, batch_size=20)
    assert [step.progress for step in steps] == [0.5, 0.5 + 0.5 / 3, 0.5 + 1 / 3]
    assert [step.count for step in steps] == [20, 20, 20]


def test_a_stage_begins_with_a_step_and_multiplies_the_batch():
    stages = [Stage(0.5, size=8, cost=0.25, batch_factor=2), Stage(1.0, cost=1.0)]
    budget = Budget(1, 64, stages)  # 2 passes of the first stage, then half of one
    plan = FullData(64, budget.epoch_ends()).plan(2)
    steps = epoch_steps(plan, budget, 2, batch_size=8)
    assert [(step.count, step.stage.size) for step in steps] == [(8, None)] * 4
    first = epoch_steps(plan, budget, 0, batch_size=8)
    assert [(step.count, step.stage.size) for step in first] == [(16, 8)] * 4
