"""Time, FLOPs and what the warm-up leaves behind: nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, VIT, Diary, same, tiny, trained
from torch import nn

from raytrain_speedup.data.appearance import Appearance
from raytrain_speedup.engine import evaluate, loop
from raytrain_speedup.engine.cost.measure import Stopwatch, hardware, training_flops
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.run import run
from raytrain_speedup.methods.pruning import InfoBatch
from raytrain_speedup.models import ModelSettings, build_model
from raytrain_speedup.tasks.classification import Classification


def test_a_phase_inside_another_interrupts_it_and_all_add_up():
    watch, begun = Stopwatch(CPU), time.perf_counter()
    with watch.phase("train"):
        time.sleep(0.02)
        with watch.phase("eval"):
            time.sleep(0.03)
        time.sleep(0.02)
        read = watch.read()  # in the middle of a phase
    whole = time.perf_counter() - begun
    seconds = watch.seconds
    assert watch.total() == pytest.approx(whole, abs=5e-3)
    assert seconds["eval"] >= 0.03
    assert seconds["train"] >= 0.04
    assert read["train_seconds"] <= seconds["train"]


def test_an_interrupted_phase_is_closed_by_an_exception():
    watch = Stopwatch(CPU)
    with pytest.raises(ZeroDivisionError), watch.phase("train"):
        1 / 0  # noqa: B018
    before = watch.state_dict()
    time.sleep(0.01)
    assert watch.state_dict() == before


def test_seconds_go_on_where_a_checkpoint_left_off():
    first, second = Stopwatch(CPU), Stopwatch(CPU)
    with first.phase("train"):
        time.sleep(0.01)
    with second.phase("warmup"):
        time.sleep(0.01)
    warmup = second.seconds["warmup"]
    second.load_state_dict(first.state_dict())
    assert second.seconds["train"] == first.seconds["train"]
    assert second.seconds["warmup"] == warmup
    assert second.work["train"] == first.work["train"] > 0


def test_synthesis_is_training_too():
    watch = Stopwatch(CPU)
    for phase in ("train", "synthesis", "eval"):
        with watch.phase(phase):
            time.sleep(0.01)
    read = watch.read()
    assert read["train_seconds"] == watch.seconds["train"] + watch.seconds["synthesis"] >= 0.02
    assert read["synthesis_seconds"] == watch.seconds["synthesis"]
    assert read["train_cpu_seconds"] == watch.work["train"] + watch.work["synthesis"]


def test_the_phases_of_a_run_add_up(tmp_path: Path):
    begun = time.perf_counter()
    metrics, _, diary = trained(tiny(eval_every=1), tmp_path)
    assert metrics["wall_seconds"] == pytest.approx(time.perf_counter() - begun, rel=0.25)
    for key in ("train_seconds", "eval_seconds", "warmup_seconds", "checkpoint_seconds"):
        assert 0 < metrics[key] < metrics["wall_seconds"]
    seconds = [epoch["train_seconds"] for epoch in diary.epochs]
    assert seconds == sorted(seconds)
    assert metrics["train_seconds"] == seconds[-1]


def test_what_a_method_does_to_train_is_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planning an epoch, making its batches and exchanging its scores are on the clock, an evaluation is not."""
    watch = Stopwatch(CPU)
    monkeypatch.setattr("raytrain_speedup.engine.run.Stopwatch", lambda device: watch)
    counted: dict[str, float] = {}

    def slowed(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def slow(*args: Any, **options: Any) -> Any:
            before = watch.read()["train_seconds"]
            time.sleep(0.002)
            counted[name] = watch.read()["train_seconds"] - before
            return original(*args, **options)

        monkeypatch.setattr(owner, name, slow)

    for name in ("plan", "observe", "exchange"):
        slowed(InfoBatch, name)
    slowed(Appearance, "show")
    slowed(loop, "epoch_steps")
    slowed(evaluate, "evaluate")
    slowed(Loop, "save")
    trained(tiny({"pruning.method": "infobatch"}), tmp_path)
    assert counted.pop("evaluate") == counted.pop("save") == 0
    assert len(counted) == 5 and min(counted.values()) >= 0.002


@pytest.mark.parametrize("keys", [{}, VIT | {"model.drop_rate": 0.3}], ids=["batch-norm", "dropout"])
def test_the_warm_up_leaves_no_trace(keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, warm, _ = trained(tiny(keys), tmp_path / "warm")
    monkeypatch.setattr(Loop, "warm_up", lambda *_: None)
    _, cold, _ = trained(tiny(keys), tmp_path / "cold")
    assert same(warm, cold)


def test_flops_of_a_small_network_are_those_counted_by_hand():
    """8 x 8 x 3 -> conv 3x3 to 4 channels (same size) -> linear to 10; 2 FLOPs a multiply-add."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    conv, linear = 2 * 64 * 4 * 3 * 9, 2 * 256 * 10
    # backward: the gradient of the weights, and that of the input, which the first layer has none of
    assert training_flops(model, Classification(), (3, 8, 8)) == 2 * conv + 3 * linear
    assert next(model.parameters()).device.type == "cpu"


def test_flops_of_resnet18_on_cifar_are_three_times_its_forward_pass():
    """.56 G multiply-adds forward, as its papers say."""
    model = build_model(ModelSettings(name="resnet18"), num_classes=10, image_size=32)
    assert training_flops(model, Classification(), (3, 32, 32)) == pytest.approx(3 * 2 * 0.556e9, rel=0.02)


def test_what_a_run_says_it_cost(tmp_path: Path):
    """Three epochs of 230 samples, the second one pruned to half of those below the mean."""
    keys = {"pruning.method": "random", "pruning.prune_ratio": 0.5}
    metrics, _, diary = trained(tiny(keys), tmp_path)
    assert [epoch["kept_fraction"] for epoch in diary.epochs] == [1.0, pytest.approx(0.5, abs=0.01), 1.0]
    samples = round(230 / 1.0)
    shown = metrics["samples_shown"]
    assert shown == 2 * samples + round(samples / 2)
    assert metrics["passes_saved"] == pytest.approx(1 - shown / (3 * samples))
    assert metrics["compute_spent"] == pytest.approx(shown / samples)
    model = build_model(ModelSettings(name="resnet8"), num_classes=10, in_channels=1, image_size=8)
    assert metrics["train_flops"] == pytest.approx(shown * training_flops(model, Classification(), (1, 8, 8)))
    assert metrics["peak_memory_bytes"] > 50e6
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize(
    ("keys", "saved"),
    [
        ({"pruning.method": "epochs", "pruning.saving": 0.25, "train.epochs": 4}, 0.25),
        ({"pruning.method": "random", "pruning.saving": 0.2, "train.epochs": 4.5}, 0.2),
        ({"pruning.method": "none", "train.epochs": 2.5}, 0.0),
    ],
    ids=["fewer-epochs", "a-part-of-the-last", "nothing"],
)
def test_what_is_saved_is_what_was_asked_for(keys: dict[str, Any], saved: float, tmp_path: Path):
    """A budget that ends within an epoch has that part of it alone."""
    metrics, _, diary = trained(tiny(keys), tmp_path)
    assert metrics["passes_saved"] == pytest.approx(saved, abs=0.003)
    budget = keys["train.epochs"] * 230
    assert metrics["samples_shown"] == pytest.approx((1 - saved) * budget, abs=1)
    assert diary.epochs[-1]["progress"] == 1


def test_progress_reaches_its_end_with_the_last_step(tmp_path: Path):
    reached: list[float] = []

    class Watching(Diary):
        def progress(self, metrics: Any) -> None:
            reached.append(metrics["progress"])

    run(tiny(epochs=2.5), Watching(tmp_path), device=CPU)
    assert reached == sorted(set(reached))
    assert reached[-1] == 1.0
    assert reached[3] == pytest.approx(1 / 2.5)


def test_the_metrics_of_a_run_name_all_that_ran():
    """Runs are compared where this is equal: how many devices, which, how many threads, which arithmetic."""
    told = {
        hardware(CPU, workers=[world], precision=precision)
        for world, precision in [(1, "fp32"), (2, "fp32"), (1, "bf16")]
    }
    assert len(told) == 3
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        told.add(hardware(CPU, workers=[1], precision="fp32"))
    finally:
        torch.set_num_threads(threads)
    assert len(told) == 4
