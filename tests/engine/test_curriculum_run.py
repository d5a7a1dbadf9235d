"""Runs under a curriculum: resumed in any stage they are the uninterrupted ones, and the parts agree."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from engine_runs import CPU, VIT, Diary, run, same, tiny, trained, untimed

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.data.batch import Batch, Step
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.cost.measure import Stopwatch
from raytrain_speedup.engine.learning_rate import learning_rate
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.models.resize import position_tables, size_of
from raytrain_speedup.settings import UserError

STAGED: dict[str, Any] = {
    "data.image_size": 16,
    "curriculum.method": "custom",
    "curriculum.schedule": [
        {"fraction": 0.2, "ratio": 0.5, "magnitude": 0, "batch_factor": 2, "replay": 2},
        {"fraction": 0.3, "ratio": 0.75, "magnitude": 4.3, "replay": 2},
        {"fraction": 0.2, "ratio": 0.75, "magnitude": 7},
        {"fraction": 0.3},
    ],
}
"""Four stages at 8, 12, 12 and 16 pixels, whose borders lie within epochs."""

AVERAGED = {"train.optimizer": "adamw", "train.lr": 0.01, "train.ema_decay": 0.9, "train.clip_norm": 1.0}
SWIN = {
    "data.image_size": 64,  # windows of 1, 2 and 2
    "model.name": "timm/swin_tiny_patch4_window7_224",
    "model.options": {"depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2]},
    "train.mixup": 0.4,
}
DEVICE = {"data.loader": "device"}
WORKERS = {"data.loader": "workers", "data.num_workers": 0}
CASES: dict[str, dict[str, Any]] = {
    "convnet": STAGED | AVERAGED | DEVICE,
    "convnet-crops": STAGED | WORKERS | {"data.augment": "random-resized-crop", "data.erasing": 0.5},
    "vit": STAGED | VIT | AVERAGED | DEVICE | {"model.drop_rate": 0.2, "pruning.method": "infobatch"},
    "vit-workers": STAGED | VIT | AVERAGED | WORKERS | {"data.num_workers": 1, "train.accumulate": 2},
    "vit-forgetful": STAGED | VIT | WORKERS | {"data.replay_limit_gb": 84e-8},  # holds 70 samples
    "swin": STAGED | AVERAGED | SWIN | DEVICE,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def loop_of(experiment: Experiment, folder: Path) -> Loop:
    torch.manual_seed(experiment.train.seed)
    splits = open_data(experiment.data, seed=experiment.train.seed)
    return assemble(experiment, splits, Diary(folder), Stopwatch(CPU))[0]


def shown(loop: Loop) -> list[tuple[Step, Batch, float]]:
    """Fit without an evaluation; gives every step with its batch and the learning rate it was taken with."""
    taken: list[tuple[Step, Batch, float]] = []
    train_step = loop.train_step

    def note(step: Step, batch: Batch, *, advance: float) -> None:
        train_step(step, batch, advance=advance)
        taken.append((step, batch, loop.learner.optimizer.param_groups[0]["lr"]))

    loop.train_step, loop.has_val = note, False  # type: ignore[method-assign]
    loop.fit()
    return taken


class Killed(Diary):
    """Dies in the middle of the step with this number of the process."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder)
        self.at, self.reached = at, 0.0

    def progress(self, metrics: Any) -> None:
        self.steps += 1
        self.reached = metrics["progress"]
        if self.steps == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_killed_in_every_stage_and_resumed_it_is_the_uninterrupted_run(keys: dict[str, Any], tmp_path: Path):
    """Killed at every third step from the second on; the last checkpoint lies one step before."""
    experiment = tiny(keys, epochs=2, checkpoint_steps=1)
    _, expected, whole = trained(experiment, tmp_path / "whole")
    killed: list[float] = []
    while True:
        torch.manual_seed(len(killed))  # what a new process finds must not matter
        diary = Killed(tmp_path / "parts", at=3)
        try:
            metrics = run(experiment, diary, device=CPU)
        except KeyboardInterrupt:
            killed.append(diary.reached)
            continue
        break
    borders = [0.2, 0.5, 0.7, 1.01]
    assert {next(i for i, end in enumerate(borders) if at < end) for at in killed} == {0, 1, 2, 3}
    resumed = torch.load(diary.latest() / "model.pt", weights_only=True)
    assert same(resumed, expected)
    assert untimed(metrics) == untimed(whole.reports[-1])
    assert untimed(diary.epochs[-1]) == untimed(whole.epochs[-1])


def test_the_first_step_of_a_stage_is_at_its_size(tmp_path: Path):
    """The borders lie within epochs, and the model follows on the step."""
    loop = loop_of(tiny(STAGED | VIT, epochs=2), tmp_path)
    steps = shown(loop)
    assert [len(batch["inputs"]) for _, batch, _ in steps[:2]] == [128, 128]
    for step, batch, _ in steps:
        assert batch["inputs"].shape[-1] == step.stage.size == loop.budget.stage_at(step.progress).size
        assert step.count == len(batch["inputs"])
    switches = [
        (before[0], after[0]) for before, after in pairwise(steps) if before[0].stage != after[0].stage
    ]
    assert len(switches) == 3
    assert any(after.number > 0 for _, after in switches), "no switch within an epoch was tried"
    assert loop.budget.epoch_ends()[-1] == 1
    assert loop.tally.compute_spent == pytest.approx(2, abs=0.6), "to a large batch a stage"


def test_the_learning_rate_is_continuous_across_stages(tmp_path: Path):
    """It is a function of progress, which no switch makes jump; only a larger batch raises it, as asked."""
    experiment = tiny(STAGED | {"train.schedule": "cosine", "train.warmup": 0.1}, epochs=2)
    steps = shown(loop_of(experiment, tmp_path))
    train, longest = experiment.train, 128 * 0.57 / 230 / 2
    for before, after in pairwise(steps):
        assert 0 < after[0].progress - before[0].progress < longest
    for step, _, lr in steps:
        factor = math.sqrt(step.stage.batch_factor)
        assert lr == pytest.approx(factor * learning_rate(step.progress, train))


@pytest.mark.parametrize("keys", [STAGED | VIT | AVERAGED, STAGED | AVERAGED | SWIN], ids=["vit", "swin"])
def test_a_switch_costs_less_than_a_step(keys: dict[str, Any], tmp_path: Path):
    loop = loop_of(tiny(keys, epochs=1), tmp_path)
    small, full = loop.budget.stages[0], loop.budget.stages[-1]
    step = loop.warm_up_step(full, number=0)
    batch = next(iter(loop.loader.train_batches([step], epoch=0)))
    loop.train_step(step, batch, advance=0.0)  # there are moments to follow
    switches, steps = [], []
    for _ in range(5):
        loop.learner.enter(small)
        start = time.perf_counter()
        loop.learner.enter(full)
        switches.append(time.perf_counter() - start)
        start = time.perf_counter()
        loop.train_step(step, batch, advance=0.0)
        steps.append(time.perf_counter() - start)
    assert median(switches) < median(steps)


def test_an_evaluation_is_at_full_size_and_leaves_the_tables_alone(tmp_path: Path):
    loop = loop_of(tiny(STAGED | VIT | AVERAGED), tmp_path)
    loop.learner.enter(loop.budget.stages[0])
    averaged = loop.learner.averaged
    assert averaged is not None
    before = [position_tables(model)["pos_embed"].clone() for model in (loop.model, averaged)]
    sizes = []
    averaged.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    loop.evaluate("val")
    assert set(sizes) == {16}
    assert size_of(loop.model) == size_of(averaged) == 8
    for model, table in zip((loop.model, averaged), before, strict=True):
        assert torch.equal(position_tables(model)["pos_embed"], table)


@pytest.mark.parametrize("loader", [DEVICE, WORKERS], ids=["device", "workers"])
def test_weights_and_scores_are_right_in_every_stage(loader: dict[str, Any], tmp_path: Path):
    """Weights travel with replayed samples, every sample has a score, and annealing shows all with weight 1."""
    pruned = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5, "pruning.anneal_from": 0.6}
    loop = loop_of(tiny(STAGED | VIT | loader | pruned, epochs=4), tmp_path)
    observe, observed = loop.pruner.observe, []

    def noted(index: torch.Tensor, loss: torch.Tensor) -> None:
        observed.append(index)
        observe(index, loss)

    loop.pruner.observe = noted  # type: ignore[method-assign]
    steps = shown(loop)
    for (step, _, _), index in zip(steps, observed, strict=True):
        assert torch.equal(index, step.index), "a sample that is shown again is not observed again"
    weights: dict[int, set[float]] = {}
    for step, batch, _ in steps:
        read = len(step.index)
        assert len(batch["index"]) == read * step.stage.replay
        assert torch.equal(batch["index"][:read], step.index)
        assert torch.equal(batch["weight"][:read], step.weight)
        for index, weight in zip(step.index.tolist(), step.weight.tolist(), strict=True):
            weights.setdefault(index, set()).add(weight)
        for index, weight in zip(batch["index"].tolist(), batch["weight"].tolist(), strict=True):
            assert weight in weights[index], "a replayed sample has a weight it was never read with"
        if step.stage == loop.budget.stages[-1]:
            assert (batch["weight"] == 1).all()
    assert {max(batch["weight"].tolist()) > 1 for _, batch, _ in steps} == {True, False}
    assert loop.pruner.seen.all()  # type: ignore[attr-defined]
    assert torch.isfinite(loop.pruner.scores).all()  # type: ignore[attr-defined]


def test_pruning_and_curriculum_save_the_product_of_both(tmp_path: Path):
    base = tiny(VIT | {"data.image_size": 16, "data.val_fraction": 0.7}, epochs=8, batch_size=16)
    pruning = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.5}
    curriculum: dict[str, Any] = {"curriculum.method": "efficienttrain++", "curriculum.family": "swin"}
    stages = base.with_overrides(curriculum).curriculum.stages(16, stride=4)
    starts = [0.0, *(stage.ends_at for stage in stages)]
    passes = sum((s.ends_at - start) / s.cost for s, start in zip(stages, starts, strict=False))
    curriculum |= {"train.epochs": 8 / passes}
    spent = {}
    for name, keys in {
        "none": {},
        "pruning": pruning,
        "curriculum": curriculum,
        "both": pruning | curriculum,
    }.items():
        metrics, _, diary = trained(base.with_overrides(keys), tmp_path / name)
        assert diary.epochs[-1]["progress"] == 1
        spent[name] = metrics["compute_spent"] / 8
    assert spent["none"] == pytest.approx(1)
    assert spent["pruning"] < 0.85
    assert spent["curriculum"] < 0.7
    assert spent["both"] == pytest.approx(spent["pruning"] * spent["curriculum"], abs=0.02)


@pytest.mark.parametrize("name", [name for name in CURRICULA if "images" in CURRICULA[name].inputs])
def test_every_curriculum_runs_end_to_end(name: str, tmp_path: Path):
    needed = {"curriculum.schedule": STAGED["curriculum.schedule"]} if name == "custom" else {}
    keys = VIT | {"data.image_size": 16, "curriculum.method": name, **needed}
    metrics, _, diary = trained(tiny(keys, epochs=1, batch_size=16), tmp_path)
    assert diary.epochs[-1]["progress"] == 1
    assert metrics["compute_spent"] == pytest.approx(1, abs=0.12), "but for the last step of each stage"
    assert all(math.isfinite(epoch["train_loss"]) for epoch in diary.epochs)
    assert 0 <= metrics["accuracy"] <= 100


def test_a_model_that_cannot_change_its_size_is_refused_by_name(tmp_path: Path):
    keys = {
        "model.name": "timm/mixer_s16_224",
        "data.image_size": 64,
    }
    with pytest.raises(
        UserError, match=r"model.name: timm/mixer_s16_224 cannot change its image size from 64"
    ):
        run(tiny(STAGED | keys), Diary(tmp_path), device=CPU)
    assert list(tmp_path.iterdir()) == []
