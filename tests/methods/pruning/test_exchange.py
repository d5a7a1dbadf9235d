"""Two real processes: one collective per epoch, and the plans one worker would make."""

import math

import pytest
import torch
import torch.distributed as dist
from ranks import WORLD, on_two_ranks

from raytrain_speedup.methods.pruning import InfoBatch, shard

N, EPOCHS = 501, 6
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "broadcast",
    "barrier",
)


def losses(index: torch.Tensor, epoch: int) -> torch.Tensor:
    return torch.sin(index * 12.9898 + epoch).abs() ** 3


def train(pruner: InfoBatch, rank: int, world: int, calls: list[str]) -> dict:
    """A run, noting each epoch's plan and the collectives made in its steps and after them."""
    plans, in_steps, in_exchange = [], [], []
    for epoch in range(EPOCHS):
        plan = pruner.plan(epoch)
        calls.clear()
        for index, _ in shard(plan, batch_size=32, rank=rank, world=world):
            pruner.observe(index, losses(index, epoch))
        in_steps.append(len(calls))
        calls.clear()
        pruner.exchange()
        in_exchange.append(list(calls))
        plans.append((plan.indices, plan.weights))
    return {"plans": plans, "in_steps": in_steps, "in_exchange": in_exchange, "state": pruner.state_dict()}


def stop_within_an_epoch(rank: int, world: int) -> InfoBatch:
    """A pruner after a few steps of epoch 2, its scores shared for a checkpoint."""
    pruner = InfoBatch(N, EPOCHS, saving=0.2)
    for epoch in range(3):
        steps = list(shard(pruner.plan(epoch), batch_size=32, rank=rank, world=world))
        for index, _ in steps[: 5 if epoch == 2 else None]:
            pruner.observe(index, losses(index, epoch))
        pruner.exchange()
    return pruner


def observe_the_same() -> torch.Tensor:
    """Scores after both workers saw samples 0 and 1, one saw 2 (a NaN), one 3, none 4 again, and one a finite loss
    of 6, of which both knew a NaN."""
    pruner = InfoBatch(7, EPOCHS)
    rank = dist.get_rank()
    pruner.observe(torch.tensor([4]), torch.tensor([7.0]))
    if rank == 0:
        pruner.observe(torch.tensor([6]), torch.tensor([math.nan]))
    pruner.exchange()
    pruner.observe(torch.tensor([0, 1]), torch.tensor([[1.0, 5.0], [2.0, 5.0]][rank]))
    pruner.observe(torch.tensor([2 + rank]), torch.tensor([[math.nan], [3.0]][rank]))
    if rank == 1:
        pruner.observe(torch.tensor([6]), torch.tensor([2.0]))
    pruner.exchange()
    assert pruner.state_dict()["seen"].tolist() == [True] * 5 + [False, True]
    return pruner.scores


def worker(rank: int) -> dict:
    calls: list[str] = []
    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name), name, calls))
    return {
        "run": train(InfoBatch(N, EPOCHS, saving=0.3, seed=1), rank, WORLD, calls),
        "within": stop_within_an_epoch(rank, WORLD).state_dict(),
        "same": observe_the_same(),
    }


def counted(collective, name, calls):
    def call(*args, **kwargs):
        calls.append(name)
        return collective(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def ranks():
    return on_two_ranks(worker)


def test_two_workers_plan_what_one_worker_plans(ranks):
    alone = train(InfoBatch(N, EPOCHS, saving=0.3, seed=1), 0, 1, [])
    assert any(len(indices) < N for indices, _ in alone["plans"])
    for rank in ranks:
        for (indices, weights), (expected_indices, expected_weights) in zip(
            rank["run"]["plans"], alone["plans"], strict=True
        ):
            assert torch.equal(indices, expected_indices)
            assert torch.equal(weights, expected_weights)
        assert torch.equal(rank["run"]["state"]["scores"], alone["state"]["scores"])
        assert torch.equal(rank["run"]["state"]["dropped"], alone["state"]["dropped"])


def test_no_collective_in_a_step_and_one_in_an_epoch(ranks):
    for rank in ranks:
        assert rank["run"]["in_steps"] == [0] * EPOCHS
        assert rank["run"]["in_exchange"] == [["all_reduce"]] * EPOCHS


def test_one_worker_goes_on_where_two_stopped_within_an_epoch(ranks):
    for rank in ranks:
        expected = stop_within_an_epoch(0, 1)
        resumed = InfoBatch(N, EPOCHS, saving=0.2)
        resumed.load_state_dict(rank["within"])
        for epoch in (2, 3):  # the epoch it stopped in, and the one planned from what was observed since
            plan, expected_plan = resumed.plan(epoch), expected.plan(epoch)
            assert torch.equal(plan.indices, expected_plan.indices)
            assert torch.equal(plan.weights, expected_plan.weights)
            assert plan.kept < N


def test_a_sample_seen_by_both_gets_the_mean_and_nan_stays_with_its_sample(ranks):
    expected = torch.tensor([1.5, 5.0, math.nan, 3.0, 7.0, 0.0, 2.0])
    for rank in ranks:
        assert torch.equal(rank["same"].nan_to_num(-1), expected.nan_to_num(-1))


def test_without_a_process_group_nothing_is_exchanged():
    pruner = InfoBatch(10, 4)
    pruner.observe(torch.arange(10), torch.arange(10.0))
    pruner.exchange()
    assert torch.equal(pruner.scores, torch.arange(10.0))
