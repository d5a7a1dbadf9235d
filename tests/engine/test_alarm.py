"""A ruined run stops and says where; a step never waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, VIT, Diary, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.engine.alarm import LossAlarm, NonFinite
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.run import run
from raytrain_speedup.tasks import Losses, Model
from raytrain_speedup.tasks.classification import Classification

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "is_nonzero", "equal.")
"""Operators whose result, or its size, the host has to wait for on a GPU."""


class Waits(TorchDispatchMode):
    """Notes every operator that waits, those inside autograd and the optimizer included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        masked = "index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for group in args
            if isinstance(group, list | tuple)
            for i in group
        )
        if masked or any(word in name for word in WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["none", "infobatch", "random"])
def test_no_step_waits_for_the_device(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = tiny(
        {"pruning.method": method}, mixup=0.5, cutmix=0.5, ema_decay=0.9, clip_norm=1.0, accumulate=2
    )
    waits, train_step, steps = Waits(), Loop.train_step, []

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a tensor was copied to the host within a step")

    def watched(self: Loop, *args: Any, **options: Any) -> None:
        with waits, monkeypatch.context() as patch:
            for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
                patch.setattr(torch.Tensor, name, forbidden)
            train_step(self, *args, **options)
        steps.append(1)

    monkeypatch.setattr(Loop, "train_step", watched)
    run(experiment, Diary(tmp_path), device=CPU)
    assert len(steps) >= 9
    assert waits.found == []


def test_what_the_detector_detects():
    x = torch.arange(4.0)
    for wait in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x[x > 1], lambda: x.nonzero()):
        with Waits() as waits:
            wait()
        assert waits.found


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seventh training loss, in the middle of the second epoch, is NaN."""
    calls: list[int] = []
    losses = Classification.losses

    def poison(self: Classification, model: Model, batch: Batch) -> Losses:
        good = losses(self, model, batch)
        calls.extend([1] if "weight" in batch else [])  # reference steps are no training
        return (
            Losses(good.losses * float("nan"), good.scores) if len(calls) == 8 else good
        )  # the first warms up

    monkeypatch.setattr(Classification, "losses", poison)


def test_a_nan_loss_stops_the_run_naming_the_step_and_the_last_good_checkpoint(poisoned, tmp_path: Path):
    with pytest.raises(NonFinite) as error:
        run(tiny(), Diary(tmp_path), device=CPU)
    assert "the loss is not finite at step 7; the last good checkpoint is" in str(error.value)
    assert str(tmp_path / "checkpoint-000000") in str(error.value)
    assert error.value.exit_code == 1
    good = torch.load(tmp_path / "checkpoint-000000" / "run.pt", weights_only=True)
    assert good["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in good["model"].values())


def test_no_checkpoint_is_taken_after_a_nan_loss(poisoned, tmp_path: Path):
    diary = Diary(tmp_path)
    with pytest.raises(NonFinite, match=r"at step 7; the last good checkpoint is .*000005"):
        run(tiny(checkpoint_steps=1), diary, device=CPU)
    latest = torch.load(tmp_path / "checkpoint-000005" / "run.pt", weights_only=True)
    assert latest["steps_taken"] == 6


def test_a_finite_loss_that_ruins_the_weights_is_noticed_before_the_checkpoint(tmp_path: Path):
    """The loss of a step is that of the weights before it."""
    with pytest.raises(NonFinite, match="the weights are not finite after step 1; there is no checkpoint"):
        run(
            tiny(VIT, lr=1e38, start_div=1, checkpoint_steps=1, weight_decay=1e4), Diary(tmp_path), device=CPU
        )
    assert not list(tmp_path.glob("checkpoint-0*"))


def test_the_first_bad_step_is_reported_within_two_looks():
    alarm = LossAlarm(CPU, every=10)
    bad, good = torch.tensor(float("inf")), torch.tensor(1.0)
    with pytest.raises(NonFinite, match="step 13$"):
        for step in range(1, 100):
            alarm.note(step, bad if step in (13, 15) else good)
    assert step == 30
