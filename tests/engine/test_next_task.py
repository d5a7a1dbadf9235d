"""A task with draws of its own, and none of the usual form, runs through the engine as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from denoising import Denoising, DenoisingSettings
from engine_runs import CPU, Diary, WorkerDiary, run, same, tiny, trained, untimed, weights
from ranks import on_two_ranks
from torch import Tensor, nn

from raytrain_speedup import models
from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data.batch import Step, draw_keys, evaluation_keys
from raytrain_speedup.engine import loop
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.pruning import InfoBatch
from raytrain_speedup.settings import UserError


class Denoiser(nn.Module):
    """Without batch statistics, so that two workers take one worker's steps."""

    def __init__(self, in_channels: int, **_: Any) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(in_channels + 1, 8, 3, padding=1),
            nn.Conv2d(8, in_channels, 3, padding=1),
        )

    def forward(self, images: Tensor, amount: Tensor) -> Tensor:
        plane = amount.view(-1, 1, 1, 1).expand(-1, 1, *images.shape[2:])
        return self.last(self.first(torch.cat([images, plane], 1)).relu())


def experiment(**train: Any) -> Experiment:
    keys: dict[str, Any] = {
        "model.name": "resnet8",
        "data.image_size": 8,
        "data.val_fraction": 0.84,
        "train.epochs": 4,
        "train.batch_size": 64,
        "train.threads": 1,
        "pruning.method": "infobatch",
        "pruning.anneal_from": 0.75,
        **{f"train.{key}": value for key, value in train.items()},
    }
    return load_experiment("digits", keys).model_copy(update={"task": DenoisingSettings()})


@pytest.fixture(autouse=True)
def denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.NETWORKS, "resnet8", Denoiser)


def worker(rank: int, folder: Path) -> dict[str, Any]:
    models.NETWORKS["resnet8"] = Denoiser
    return run(experiment(), WorkerDiary(folder, rank), device=CPU)


def test_it_trains_is_pruned_by_its_scores_and_judged_by_its_own_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[Tensor] = []
    observe = InfoBatch.observe

    def noting(self: InfoBatch, index: Tensor, scores: Tensor) -> None:
        observed.append(scores)
        observe(self, index, scores)

    monkeypatch.setattr(InfoBatch, "observe", noting)
    found, _, _ = trained(experiment(), tmp_path)
    assert found["metric"] == "error" and 0 < found["error"] == found["test_loss"] < 2
    assert found["val_error"] > 0 and found["passes_saved"] > 0.05
    assert found["reference_steps"] > 0 and found["train_flops"] > 0
    assert observed[-1].mean() > 1.5 * found["val_error"], "scores are losses over their amount of noise"


def test_it_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole, expected, _ = trained(experiment(), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(experiment(), Diary(tmp_path / "parts", stop_after=6), device=CPU)
    again, resumed, _ = trained(experiment(), tmp_path / "parts")
    assert untimed(again) == untimed(whole) and same(resumed, expected)


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    """What is drawn for a sample does not depend on who shows it."""
    whole, expected, _ = trained(experiment(), tmp_path / "one")
    (tmp_path / "two").mkdir()
    _, found = on_two_ranks(worker, tmp_path / "two")
    torch.testing.assert_close(weights(Diary(tmp_path / "two")), expected, rtol=1e-3, atol=1e-5)
    assert found["error"] == pytest.approx(whole["error"], rel=1e-4)
    assert found["samples_shown"] == whole["samples_shown"]


def test_a_network_that_is_not_for_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.NETWORKS, "resnet8", lambda **_: nn.Conv2d(1, 1, 1))
    with pytest.raises(UserError, match=r"task\.kind: denoising and model\.name 'resnet8' make no step: "):
        trained(experiment(), tmp_path)


def test_a_task_that_draws_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Denoising, "draws", False)
    with pytest.raises(
        UserError, match=r"task\.kind: denoising: draws is False; expected True where its example"
    ):
        trained(experiment(), tmp_path)


def test_a_task_that_draws_nothing_costs_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_keys", lambda *_, **__: pytest.fail("keys were made"))
    plain = tiny({"model.name": "wrn16_1"}, epochs=1, checkpoint_every=0)
    assert run(plain, Diary(tmp_path), device=CPU)["accuracy"] > 0


def test_draws_are_of_seed_epoch_and_sample_alone() -> None:
    def keys(
        index: list[int], *, seed: int = 0, epoch: int = 1, number: int = 0, replay: int = 1
    ) -> list[int]:
        stage = FULL.__class__(**{**FULL.__dict__, "replay": replay})
        step = Step(number, torch.tensor(index), torch.ones(len(index)), len(index), 0.0, stage)
        return draw_keys(torch.tensor(index), step, seed=seed, epoch=epoch).tolist()

    assert keys([3, 5, 7]) == [keys([each], number=9)[0] for each in (3, 5, 7)]
    different = [
        *keys([3, 5]),
        *keys([3], seed=1),
        *keys([3], epoch=2),
        *evaluation_keys(torch.tensor([3])).tolist(),
    ]
    assert len(set(different)) == 5
    again = [*keys([3, 3, 3, 3], replay=4), *keys([3, 3], replay=2, number=1)]
    assert len(set(again)) == 6, "a sample that comes back in a stage is drawn for anew"


def test_its_losses_are_those_of_its_formula() -> None:
    """With a model that knows how much is noise, and gives the mixture back."""
    images = torch.randn(6, 1, 4, 4)
    batch = {"inputs": images, "draws": torch.arange(6)}
    seen: list[tuple[Tensor, Tensor]] = []

    def echo(mixture: Tensor, amount: Tensor) -> Tensor:
        seen.append((mixture, amount))
        return mixture

    found = Denoising().losses(echo, batch)
    ((mixture, amount),) = seen
    torch.testing.assert_close(found.losses, (mixture - images).square().mean((1, 2, 3)))
    torch.testing.assert_close(found.scores, found.losses / amount)
