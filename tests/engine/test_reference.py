"""The yardstick of a run: it touches nothing, counts what was worked, and goes on after a resume."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, VIT, Diary, run, same, tiny, trained
from torch import nn

from raytrain_speedup.engine.cost.clock import CpuClock, involuntary_switches
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.cost.reference import Reference
from raytrain_speedup.engine.learner import Learner
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.tasks.classification import Classification

FP32 = torch.autocast("cpu", enabled=False)


class ByHand:
    """A clock that a test sets; `steps` are what the reference steps will take, one after another."""

    name = "cpu"

    def __init__(self, steps: Iterator[float]) -> None:
        self.now = 0.0
        self.steps = steps

    def read(self) -> float:
        return self.now


def by_hand(steps: list[float], **options: float) -> tuple[Reference, Stopwatch, ByHand]:
    watch, clock = Stopwatch(CPU), ByHand(iter(steps))
    watch.clock = clock  # type: ignore[assignment]
    sizes = {"batch_size": 4, "budget_samples": 1000.0} | options
    reference = Reference(nn.Flatten(), Classification(), (1, 2, 2), watch=watch, autocast=FP32, **sizes)  # type: ignore[arg-type]

    def step() -> None:
        clock.now += next(clock.steps)

    reference._step = step  # type: ignore[method-assign]
    return reference, watch, clock


def test_every_segment_is_counted_by_the_yardstick_around_it() -> None:
    """Ten seconds while a step takes 1, ten while it takes 1 and then 3, ten while it takes 3: 10 + 5 + 10/3."""
    reference, watch, clock = by_hand([1.0, 1.0, 3.0, 3.0])
    with watch.phase("train"):
        for number in range(4):
            reference.measure(number / 4)
            clock.now += 10.0 if number < 3 else 0.0
    found = reference.metrics()
    assert found["reference_steps"] == pytest.approx(10 / 1 + 10 / 2 + 10 / 3)
    assert found["reference_step_seconds"] == 2.0
    assert watch.work["train"] == 30.0, "the steps are outside of what they measure"
    assert watch.work["reference"] == 8.0


def test_an_earlier_process_is_counted_by_its_own_yardstick() -> None:
    """Eight seconds on a slow machine (2 s a step), then eight on a fast one (1 s): 4 + 8 steps."""
    slow, watch, clock = by_hand([2.0])
    with watch.phase("train"):
        slow.measure()
        clock.now += 8.0
        state = slow.state_dict()
        fast, later, faster = by_hand([1.0, 1.0])
        fast.load_state_dict(state)
        later.load_state_dict(watch.state_dict())
    with later.phase("train"):
        fast.measure()
        faster.now += 8.0
        fast.measure()
    assert fast.metrics()["reference_steps"] == pytest.approx(4 + 8)
    assert len(fast.seconds) == 3


def test_it_is_small_where_the_budget_is() -> None:
    """At most 1.2 % of the budget's samples, at least two a step; a full batch, thrice, where there is plenty."""
    for budget, batch, steps in ((1000.0, 2, 1), (30_000.0, 17, 1), (1e6, 64, 3), (200_000.0, 64, 1)):
        reference, _, _ = by_hand([], batch_size=64, budget_samples=budget)
        assert (reference.batch_size, reference.steps) == (batch, steps)


def test_it_is_due_once_in_a_twentieth() -> None:
    reference, _, _ = by_hand([1.0] * 100)
    reference.measure(0.0)
    asked = 0
    for step in range(1, 401):
        if reference.due(step / 400):
            reference.measure(step / 400)
            asked += 1
    assert asked == 19, "the end is measured after the last epoch"


def test_it_is_measured_before_the_first_step_after_the_last_and_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps, each more than a twentieth of the run."""
    done: list[str] = []

    def noting(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            done.append(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, noted)

    noting(Reference, "measure")
    noting(Learner, "step")
    trained(tiny(), tmp_path)
    assert done == ["measure", *["step", "measure"] * 12]


def test_what_it_tells_of_the_runs_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of twenty was slow: neither the median nor its quarter sees it. Of fifty milliseconds of the wall at
    least, ten were worked; and between two measurements the core was lost thrice."""
    switches = count(100, 3)
    monkeypatch.setattr("raytrain_speedup.engine.cost.reference.involuntary_switches", lambda: next(switches))
    reference, watch, clock = by_hand([*[1.0] * 19, 9.0])
    with watch.phase("train"):
        for _ in range(20):
            reference.measure()
        time.sleep(0.05)
        clock.now += 0.01
    found = reference.metrics()
    assert (found["reference_spread"], found["reference_step_seconds"]) == (1.0, 1.0)
    assert 0 < found["core_fraction"] <= 0.2
    assert found["switches_per_second"] == pytest.approx(20 * 3 / 0.01)


@pytest.mark.parametrize("keys", [{}, VIT | {"model.drop_rate": 0.3}], ids=["batch-norm", "dropout"])
def test_the_run_is_the_same_with_and_without_it(
    keys: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, timed, diary = trained(tiny(keys), tmp_path / "timed")
    assert diary.epochs[-1]["reference_steps"] > 0
    monkeypatch.setattr(Reference, "_step", lambda *_: None)
    monkeypatch.setattr(Reference, "measure", lambda *_: None)
    monkeypatch.setattr(Reference, "metrics", lambda *_: {})
    _, plain, _ = trained(tiny(keys), tmp_path / "plain")
    assert same(timed, plain)


def test_a_run_tells_its_cost_and_how_it_was_counted(tmp_path: Path) -> None:
    """Twelve steps of 58 to 64 samples forward and backward, in steps of 2: a few hundred, whatever the machine
    does; and the yardstick's time is no training time."""
    found, _, diary = trained(tiny(), tmp_path)
    assert found["reference_batch"] == 2 and 20 < found["reference_steps"] < 600
    steps = [epoch["reference_steps"] for epoch in diary.epochs]
    assert steps == sorted(steps) and found["reference_steps"] == pytest.approx(steps[-1])
    assert 0 < found["train_cpu_seconds"] < 2 * found["train_seconds"]
    assert 0 < found["reference_seconds"] < found["train_seconds"]
    assert found["reference_spread"] >= 1 and found["core_fraction"] > 0 and found["switches_per_second"] >= 0
    assert found["setup"] == "batch 64, device loader, channels last" and found["epochs"] == 3


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    diary = Diary(tmp_path, stop_after=7)
    with pytest.raises(Stopped):
        run(tiny(), diary, device=CPU)
    before = torch.load(diary.latest() / "run.pt", weights_only=True)["reference"]  # type: ignore[operator]
    found = run(tiny(), Diary(tmp_path), device=CPU)
    assert found["reference_steps"] > before["cost"] > 0


def test_cpu_seconds_count_the_processes_that_load() -> None:
    """Their work is the run's; a sleep is nobody's."""
    clock = CpuClock()
    context = torch.multiprocessing.get_context("fork")
    begun, before = time.process_time(), clock.read()
    child = context.Process(target=_work, args=(0.3,))
    child.start()
    while child.is_alive():
        clock.read()
        time.sleep(0.02)
    worked = clock.read() - before
    own = time.process_time() - begun
    assert worked - own > 0.2, "seen at least till shortly before it ended"
    assert worked - own < 1.0


def test_a_sleep_is_no_work_and_takes_no_core_away() -> None:
    clock = CpuClock()
    worked, lost = clock.read(), involuntary_switches()
    for _ in range(200):
        time.sleep(1e-3)
    assert clock.read() - worked < 0.1
    assert involuntary_switches() - lost < 100


def _work(seconds: float) -> None:
    while time.process_time() < seconds:
        pass
    time.sleep(0.1)


def test_a_yardstick_that_moves_between_the_quarters_of_a_run_is_reported() -> None:
    """Sixteen measurements, of which the third four are half as slow again; a slow one alone is noise."""
    reference, watch, _ = by_hand([1.0] * 8 + [1.5] * 4 + [1.0, 1.0, 9.0, 1.0])
    with watch.phase("train"):
        for _ in range(16):
            reference.measure()
    assert reference.metrics()["reference_spread"] == 1.5
