"""Batch norm over all workers: two of them take the steps of one, by torch's own batch norm."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_runs import CPU, Diary, WorkerDiary, run, same, tiny, trained, weights
from ranks import on_two_ranks
from timm.layers import BatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain_speedup.config import load_experiment
from raytrain_speedup.data import DeviceLoader
from raytrain_speedup.data.batch import Batch
from raytrain_speedup.engine.ema import MovingAverage
from raytrain_speedup.methods.distillation.networks import borrowed
from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.models.batch_norm import own_statistics, share_statistics, uncounted
from raytrain_speedup.models.dense import PooledBatchNorm
from raytrain_speedup.models.detectors import one_loss_an_image
from raytrain_speedup.settings import UserError

SYNC = {"train.batch_size": 33, "pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "train.lr": 0.01}
NORMS = 9  # of ResNet-8
SHARES = [(5, 3), (1, 4), (0, 6), (2, 2)]  # samples of rank 0 and of rank 1, step by step
STEPS = len(SHARES)


def network() -> nn.Sequential:
    """Every kind of batch norm: affine or not, averaged over all steps or by momentum, behind pooling, in timm."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.BatchNorm2d(2, affine=False),
        nn.Conv2d(2, 4, 3),
        BatchNormAct2d(4),
        nn.AdaptiveAvgPool2d(1),
        PooledBatchNorm(4),
        nn.Flatten(),
        nn.BatchNorm1d(4, momentum=None),
        nn.Linear(4, 3),
        nn.BatchNorm1d(3, track_running_stats=False),
    )
    return layers.double()


def samples(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return 3 + torch.randn(sum(SHARES[step]), 2, 5, 5, dtype=torch.float64, generator=generator)


def steps_of(model: nn.Module, parts: list[Tensor | None]) -> list[Tensor]:
    """Weights and statistics after SGD on the mean of a loss; a part that is None is looked at for nothing."""
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    for number, part in enumerate(parts):
        count = sum(SHARES[number])
        if part is None:
            with uncounted():
                loss = model(torch.full((2, 2, 5, 5), 100.0, dtype=torch.float64)).sum() * 0
        else:
            loss = (model(part).exp() * torch.tensor([1.0, 2.0, 4.0])).sum() / count
        optimizer.zero_grad()
        (loss * (2 if dist.is_initialized() else 1)).backward()  # DDP takes the mean
        optimizer.step()
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def stepping(rank: int, parallel: DistributedDataParallel) -> list[Tensor]:
    begin = [0 if rank == 0 else own for own, _ in SHARES]
    parts = [samples(step)[at : at + SHARES[step][rank]] for step, at in enumerate(begin)]
    return steps_of(parallel, [part if len(part) else None for part in parts])


def alone(model: nn.Module) -> list[int]:
    """How many collectives copies of the network make that one worker asks alone."""
    before, calls, gather = model.state_dict().keys(), [0], dist.all_gather

    def counting(*args: Any) -> Any:
        calls[-1] += 1
        return gather(*args)

    x = samples(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather", counting)
        model.eval()(x)
        calls.append(0)
        yardstick = copy.deepcopy(model).train()
        own_statistics(yardstick)
        yardstick(x)
        calls.append(0)
        with borrowed(model, batch_statistics=True) as judge:
            judge(x)
        calls.append(0)
        MovingAverage(model, 0.9, 10).module.eval()(x)
        calls.append(0)
        model.train()(x)
    assert yardstick.state_dict().keys() == before == network().state_dict().keys()
    return calls


class Unreadable(DeviceLoader):
    """The part of rank 1 of the second step cannot be read."""

    def train_batches(self, steps: Any, *, epoch: int) -> Iterator[Batch]:
        for step, batch in zip(steps, super().train_batches(steps, epoch=epoch), strict=True):
            lost = self.rank == 1 and step.number == 1
            yield {key: tensor[:0] for key, tensor in batch.items()} if lost else batch


def worker(rank: int, folder: Path) -> dict[str, Any]:
    model = network()
    share_statistics(model, 2)
    found: dict[str, Any] = {
        "steps": stepping(rank, DistributedDataParallel(model, forward_sync_buffers=False))
    }
    found["alone"] = alone(model)
    calls, gather = [], dist.all_gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather", lambda *args: (calls.append(1), gather(*args))[1])
        diary = WorkerDiary(folder / "whole", rank)
        found["run"] = run(tiny(SYNC, sync_batch_norm=True), diary, device=CPU)
    found |= {"gathered": len(calls), "shown": diary.steps}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raytrain_speedup.data.DeviceLoader", Unreadable)
        found["unreadable"] = run(
            tiny(epochs=1, sync_batch_norm=True), WorkerDiary(folder / "unreadable", rank), device=CPU
        )
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sync")
    for name in ("whole", "unreadable"):
        (folder / name).mkdir()
    return folder, on_two_ranks(worker, folder)


def test_two_ranks_take_the_steps_of_torchs_own_layers(two: Any) -> None:
    expected = steps_of(network(), [samples(step) for step in range(STEPS)])
    first, second = (found["steps"] for found in two[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first, expected, rtol=1e-10, atol=1e-12)


def test_whoever_asks_a_copy_alone_waits_for_nobody(two: Any) -> None:
    """Evaluation, the reference step's copy, a synthesizer's judge, the average; then a step."""
    assert [found["alone"] for found in two[1]] == [[0, 0, 0, 0, 5]] * 2


def test_a_pruned_run_of_two_workers_is_that_of_one(two: Any, tmp_path: Path) -> None:
    metrics, expected, diary = trained(tiny(SYNC, sync_batch_norm=True), tmp_path)
    found = two[1][0]
    torch.testing.assert_close(weights(Diary(two[0] / "whole")), expected, rtol=1e-3, atol=1e-4)
    assert found["run"]["samples_shown"] == metrics["samples_shown"] < 3 * 230
    assert found["run"]["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-3)
    assert found["gathered"] == NORMS * (found["shown"] + 1)  # one to warm up; a reference step none
    assert found["shown"] == diary.steps
    assert found["run"]["setup"].endswith("synchronised batch norm")


def test_one_worker_goes_on_from_the_two(two: Any, tmp_path: Path) -> None:
    shutil.copytree(two[0] / "whole", tmp_path / "one")
    for file in (tmp_path / "one").glob("checkpoint-*/metrics.json"):
        file.unlink()
    _, again, diary = trained(tiny(SYNC, sync_batch_norm=True), tmp_path / "one")
    assert diary.steps == 0
    assert same(again, weights(Diary(two[0] / "whole")))
    shutil.copytree(two[0] / "whole", tmp_path / "other")
    with pytest.raises(UserError, match=r"train\.sync_batch_norm is True there and False here"):
        trained(tiny(SYNC), tmp_path / "other")


def test_a_worker_without_samples_moves_no_statistics(two: Any, tmp_path: Path) -> None:
    """The step is that of the others' samples; one worker takes it, where it cannot read the same ones."""

    class AsUnreadable(DeviceLoader):
        def train_batches(self, steps: Any, *, epoch: int) -> Iterator[Batch]:
            for step, batch in zip(steps, super().train_batches(steps, epoch=epoch), strict=True):
                left = 32 if step.number == 1 else None
                yield {key: tensor[:left] for key, tensor in batch.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raytrain_speedup.data.DeviceLoader", AsUnreadable)
        _, expected, _ = trained(tiny(epochs=1, sync_batch_norm=True), tmp_path)
    torch.testing.assert_close(weights(Diary(two[0] / "unreadable")), expected, rtol=1e-3, atol=1e-4)


class Own(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return input


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "Sequential has no batch normalisation; expected false"),
        (nn.Sequential(SplitBatchNorm2d(4)), "0 is a SplitBatchNorm2d, whose forward pass is its own"),
        (nn.Sequential(Own(4)), "0 is a Own, whose forward pass is its own"),
    ],
)
def test_what_cannot_share_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=f"train.sync_batch_norm: {message}"):
        share_statistics(model, 1)


def test_a_head_that_sees_one_image_at_a_time_is_refused() -> None:
    name = "torchvision/fasterrcnn_resnet50_fpn_v2"
    with torch.device("meta"):
        detector = build_model(ModelSettings(name=name), num_classes=3, image_size=64, dense=None)
    assert one_loss_an_image(detector)
    with pytest.raises(UserError, match=r"asks roi_heads\.\S+ about one image after another"):
        share_statistics(detector, 1)


def test_a_step_in_parts_is_refused() -> None:
    with pytest.raises(UserError, match="sync_batch_norm: true is not allowed with accumulate 2"):
        load_experiment("digits", {"train.sync_batch_norm": True, "train.accumulate": 2})
