"""The engine's numbers are those of a loop anyone would write: bit for bit where the methods are disabled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import VIT, same, tiny, trained
from hand_written import Trained, train_by_hand
from torch import Tensor

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.alarm import LossAlarm
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.methods.pruning import FullData, equal_epochs

DISABLED: list[dict[str, Any]] = [
    {"pruning.method": "none"},
    {"pruning.method": "infobatch", "pruning.prune_ratio": 0.0},
    {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 0.0},
    {"pruning.method": "random", "pruning.prune_ratio": 0.0},
    {"pruning.method": "epochs", "pruning.saving": 0.0},
]
PRUNED = {
    "pruning.method": "infobatch",
    "pruning.prune_ratio": 0.6,
    "pruning.anneal_from": 0.7,
    "train.epochs": 6,  # of which the second, third and fourth are pruned
    "train.schedule": "cosine",
    "train.warmup": 0.1,
    "train.lr": 0.05,
    "train.seed": 3,
}
ENABLED: dict[str, dict[str, Any]] = {
    "infobatch": PRUNED,
    # Without a kink: mixing rounds otherwise by hand, and a ReLU at zero makes a thousand times as much of it.
    "mixup": PRUNED | VIT | {"train.mixup": 0.5},
    "average": PRUNED | {"train.ema_decay": 0.8},
    "clipped": PRUNED | {"train.clip_norm": 0.5},
    "accumulated": PRUNED | VIT | {"train.accumulate": 4},  # without batch statistics it is the same step
    "all": PRUNED
    | VIT
    | {"train.accumulate": 2, "train.mixup": 0.5, "train.ema_decay": 0.8, "train.clip_norm": 0.5},
}


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The summed loss of every step that the engine takes."""
    losses: list[float] = []

    class Recording(LossAlarm):
        def note(self, step: int, loss: Tensor) -> None:
            losses.append(loss.item())
            super().note(step, loss)

    monkeypatch.setattr("raytrain_speedup.engine.loop.LossAlarm", Recording)
    return losses


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The samples that the engine shows, by epoch and step."""
    shown: list[list[Tensor]] = []
    train_step = Loop.train_step

    def note(self: Loop, step: Any, batch: Any, *, advance: float) -> None:
        if step.number == 0:
            shown.append([])
        shown[-1].append(step.index)
        train_step(self, step, batch, advance=advance)

    monkeypatch.setattr(Loop, "train_step", note)
    return shown


def full_order(experiment: Experiment) -> list[Tensor]:
    """The order of epochs that show all samples."""
    epochs = int(experiment.train.epochs)
    data = FullData(230, equal_epochs(epochs), seed=experiment.train.seed)
    return [data.plan(epoch).indices for epoch in range(epochs)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain() -> Trained:
    experiment = tiny(seed=7)
    return train_by_hand(experiment, full_order(experiment))


@pytest.mark.parametrize("disabled", DISABLED, ids=lambda keys: "-".join(map(str, keys.values())))
def test_a_disabled_method_is_the_plain_loop_bit_for_bit(disabled, plain: Trained, curve, tmp_path: Path):
    _, weights, _ = trained(tiny(disabled, seed=7), tmp_path)
    assert len(curve) == 12
    assert curve == plain.losses
    assert same(weights, plain.weights)


@pytest.mark.parametrize("keys", ENABLED.values(), ids=ENABLED)
def test_a_pruned_run_is_the_loop_of_the_paper(keys: dict[str, Any], order, curve, tmp_path: Path):
    """Weights in the loss, scores without them, the divisor of a short batch, progress by what is shown."""
    experiment = tiny(keys)
    metrics, weights, diary = trained(experiment, tmp_path)
    shown = [torch.cat(steps) for steps in order]
    expected = train_by_hand(experiment, shown)
    kept = [len(samples) for samples in shown]
    assert kept[0] == kept[4] == kept[5] == 230 and max(kept[1:4]) < 190
    assert torch.equal(shown[0], full_order(experiment)[0])
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected.losses), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, expected.weights, rtol=1e-3, atol=1e-5)
    assert [epoch["train_loss"] for epoch in diary.epochs] == pytest.approx(expected.epoch_losses, rel=1e-4)
    found = {"loss": metrics["test_loss"], **metrics}
    for name, metric in expected.metrics.items():
        assert found[name] == pytest.approx(metric, rel=1e-4)
    assert metrics["samples_shown"] == sum(kept)
