"""Losses on an accelerator, without one: the meta device stands for it, and a mode writes down what is moved.

What it cannot show is the corruption itself: a copy that is read before it has arrived. The last test does, on a
machine with a GPU.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain_speedup.methods.pruning import InfoBatch, InfoBatchSettings
from raytrain_speedup.methods.pruning.scored import FRESH, SHARED

CPU, META = torch.device("cpu"), torch.device("meta")


class Transfers(TorchDispatchMode):
    """Notes every copy between devices as (from, to, without waiting), and gives values to those from `meta`.

    Attributes:
        seen: the copies, in their order.
        reduced: devices of the tensors that were reduced over the process group.
        arriving: what a copy to the CPU brings.
    """

    def __init__(self, arriving: Tensor | None = None) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bool]] = []
        self.reduced: list[str] = []
        self.arriving = arriving

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.c10d.allreduce_.default:
            self.reduced.append(args[0][0].device.type)
        if (
            func is not torch.ops.aten._to_copy.default
            or kwargs.get("device", args[0].device) == args[0].device
        ):
            return func(*args, **kwargs)
        to = torch.device(kwargs["device"])
        self.seen.append((args[0].device.type, to.type, kwargs.get("non_blocking", False)))
        if to == CPU:
            assert self.arriving is not None
            return self.arriving.clone()
        return func(*args, **kwargs)


def test_scores_live_where_the_first_losses_are():
    pruner = InfoBatch(100, epochs=10)
    pruner.observe(torch.arange(8), torch.ones(8, device=META))
    assert pruner.device == pruner.scores.device == pruner.seen.device == META


def test_nothing_is_copied_to_the_cpu_in_a_step():
    pruner = InfoBatch(100, epochs=10)
    pruner.observe(torch.arange(8), torch.ones(8, device=META))
    with Transfers() as transfers:
        pruner.observe(torch.arange(8), torch.ones(8, device=META, dtype=torch.bfloat16))
    assert transfers.seen == [("cpu", "meta", True)]  # the index


def test_what_was_observed_or_loaded_before_comes_along():
    pruner = InfoBatch(4, epochs=10)
    state = InfoBatch(4, epochs=10).state_dict() | {"scores": torch.arange(4.0), "seen": torch.ones(4).bool()}
    pruner.load_state_dict(state)
    assert pruner.device is None
    assert pruner.plan(1).stats["unobserved"] == 0
    pruner.observe(torch.arange(2), torch.tensor([7.0, 8.0]))
    assert pruner.device == CPU
    assert pruner.scores.tolist() == [7, 8, 2, 3]


def test_scores_that_were_asked_to_stay_on_the_cpu_are_waited_for():
    """Without waiting, the kernels that follow would read the copy before it has arrived."""
    pruner = InfoBatch(100, epochs=10, device="cpu")
    with Transfers(arriving=torch.tensor([1.0, 2.0])) as transfers:
        pruner.observe(torch.tensor([3, 4]), torch.ones(2, device=META))
    assert transfers.seen == [("meta", "cpu", False)]
    assert pruner.scores[3:5].tolist() == [1, 2]


def test_a_device_that_was_asked_for_is_kept_and_reached_without_waiting():
    pruner = InfoBatchSettings().build(100, [0.5, 1.0], seed=0, device=META)
    with Transfers() as transfers:
        pruner.observe(torch.arange(2), torch.ones(2))
    assert transfers.seen == [("cpu", "meta", True)] * 2
    assert pruner.scores.device == META


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[None]:
    dist.init_process_group(request.param, store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("group", ["meta:fake"], indirect=True)
def test_a_group_that_takes_no_tensors_of_the_cpu_is_given_others(group):
    """As nccl alone does. What comes back from the accelerator becomes the scores."""
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(2))
    pruner = InfoBatch(3, epochs=10)
    pruner.observe(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert pruner.seen.tolist() == [FRESH, FRESH, 0]
    sums, counts = [4.0, 6.0, 0.0], [2.0, 1.0, 0.0]
    with Transfers(arriving=torch.tensor([sums, counts])) as transfers:
        pruner.exchange()
    assert transfers.reduced == ["meta"]
    assert transfers.seen == [("cpu", "meta", False), ("meta", "cpu", False)]
    assert pruner.scores.tolist() == [2, 6, 0]
    assert pruner.seen.tolist() == [SHARED, SHARED, 0]


@pytest.mark.parametrize("group", ["cpu:fake,meta:fake", "meta:fake,cpu:fake"], indirect=True)
def test_a_group_that_takes_them_gets_them_where_they_are(group):
    pruner = InfoBatch(3, epochs=10)
    pruner.observe(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    with Transfers() as transfers:
        pruner.exchange()
    assert transfers.reduced == ["cpu"]
    assert transfers.seen == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", [None, "cpu", "cuda"])
def test_losses_that_a_busy_gpu_has_not_computed_yet_are_the_scores(device):
    pruner = InfoBatch(1_000_000, epochs=10, device=device)
    index = torch.arange(1_000_000)
    torch.cuda._sleep(500_000_000)  # some .3 s
    pruner.observe(index, index.cuda() * 2.0)
    assert torch.equal(pruner.state_dict()["scores"], index * 2.0)
