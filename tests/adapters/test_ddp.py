"""Two real processes under DDP: the plan and the weights of one process, which can go on where two stopped."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from adapter_runs import (
    BATCH,
    EPOCHS,
    RATES,
    VIT,
    EngineOf,
    EngineRun,
    Interrupted,
    digits,
    loader_of,
    network,
    recorded,
    settings,
    sgd,
    tiny,
    train,
)
from ranks import WORLD, on_two_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from raytrain_speedup.adapters import ProgressLR, PrunedBatchSampler, PrunedLoader
from raytrain_speedup.settings import UserError

STOP_AFTER = 6  # steps: in the middle of the second epoch, which is pruned


def through_a_sampler(model: Any, *, mean: bool = False, world: int = WORLD) -> None:
    """The loop of a script that has a `DataLoader`."""
    data, options = digits(tiny(VIT)), settings(tiny(VIT))
    sampler = PrunedBatchSampler(len(data), **options, batch_size=BATCH // world)
    loader = DataLoader(data, batch_sampler=sampler)
    optimizer = sgd(model)
    scheduler = ProgressLR(optimizer, sampler, **RATES)
    for epoch in range(sampler.epoch, sampler.epochs):
        sampler.set_epoch(epoch)
        for batch, (inputs, target) in zip(sampler.batches, loader, strict=True):
            losses = cross_entropy(model(inputs), target, reduction="none")
            loss = sampler.loss(losses)
            if mean:
                loss = (losses * batch.weight).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def parts(model: Any, rank: int) -> dict[str, Any]:
    """The loader over a mesh, cut off within an epoch, and gone on with from its state."""
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("dp",))
    data, options = digits(tiny(VIT)), settings(tiny(VIT)) | {"batch_size": BATCH // WORLD}
    optimizer = sgd(model)
    loader = PrunedLoader(data, **options, group=mesh["dp"])
    scheduler = ProgressLR(optimizer, loader, **RATES)
    with pytest.raises(Interrupted):
        train(loader, model, optimizer, scheduler=scheduler, stop_after=STOP_AFTER)
    state = {
        "loader": loader.state_dict(),
        "model": model.module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, Path("state.pt") if rank == 0 else Path("other.pt"))
    again = PrunedLoader(data, **options)
    again.load_state_dict(
        torch.load("state.pt", weights_only=True)["loader"] if rank == 0 else state["loader"]
    )
    train(again, model, optimizer)
    return model.module.state_dict()


def worker(rank: int, folder: Path) -> dict[str, Any]:
    os.chdir(folder)
    calls = count_collectives()
    new = lambda: DistributedDataParallel(network(tiny(VIT)))  # noqa: E731
    result: dict[str, Any] = {}
    model = new()
    with recorded() as shown:
        calls.clear()
        through_a_sampler(model)
    result |= {"shown": shown, "calls": list(calls), "sampler": model.module.state_dict()}
    through_a_sampler(model := new(), mean=True)
    result["mean"] = model.module.state_dict()
    result["loader"] = parts(new(), rank)
    with pytest.raises(UserError, match="group: a mesh of 2 dimensions"):
        loader_of(tiny(), batch_size=8, group=init_device_mesh("cpu", (2, 1)))
    return result


def count_collectives() -> list[str]:
    """The names of this process's all-reduces of Python: DDP's own are not among them."""
    calls: list[str] = []
    collective = dist.all_reduce

    @functools.wraps(collective)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append("all_reduce")
        return collective(*args, **kwargs)

    dist.all_reduce = call  # type: ignore[assignment]
    return calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return on_two_ranks(worker, folder)


@pytest.fixture
def engine(engine_of: EngineOf) -> EngineRun:
    return engine_of(VIT)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_processes_show_what_the_engine_shows(ranks, engine):
    both = [torch.cat(step) for step in zip(*(rank["shown"] for rank in ranks), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(both, engine[0], strict=True))
    assert len(both) == len(engine[0]) and sum(map(len, both)) < 0.9 * 230 * EPOCHS


def test_and_train_its_weights(ranks, engine):
    for rank in ranks:
        assert distance(rank["sampler"], engine[1]) < 1e-5
        assert distance(rank["loader"], engine[1]) < 1e-5


def test_a_mean_over_the_part_of_each_process_trains_others(ranks, engine):
    """What the README warns of."""
    assert distance(ranks[0]["mean"], engine[1]) > 1e-4


def test_there_is_one_exchange_an_epoch(ranks):
    for rank in ranks:
        assert rank["calls"] == ["all_reduce"] * (EPOCHS - 1)


def test_one_process_goes_on_where_two_were_cut_off(folder: Path, ranks, engine):
    state = torch.load(folder / "state.pt", weights_only=True)
    model = network(tiny(VIT))
    model.load_state_dict(state["model"])
    optimizer = sgd(model)
    optimizer.load_state_dict(state["optimizer"])
    loader = loader_of(tiny(VIT))
    loader.load_state_dict(state["loader"])
    with recorded() as shown:
        train(loader, model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(shown, engine[0][STOP_AFTER:], strict=True))
    assert distance(model.state_dict(), engine[1]) < 1e-5
