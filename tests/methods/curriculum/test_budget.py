"""The budget: published metrics, and properties against a step-by-step account."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.methods.curriculum.base import FULL, Stage, lay_out
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.curriculum.published import EfficientTrainPlusPlus


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    count = draw(st.integers(1, 8))
    fractions = draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    stages = [
        Stage(1.0, cost=draw(st.floats(0.05, 1)), magnitude=k, replay=draw(st.integers(1, 4)))
        for k in range(count - 1)
    ]
    return Budget(draw(st.floats(0.3, 40)), 1000, lay_out([*stages, FULL], fractions))


def test_a_budget_of_200_epochs_shows_the_published_454() -> None:
    stages = EfficientTrainPlusPlus().stages(224, stride=32, model="resnet50")
    budget = Budget(200, 1_281_167, stages)
    assert budget.num_epochs == pytest.approx(454, abs=1)  # the paper's whole epochs sum to 454
    assert len(budget.epoch_ends()) == 455
    epochs = Counter[int | None]()
    for stage, shown in zip(stages, budget.samples_shown(), strict=True):
        epochs[stage.size] += shown / 1_281_167
    assert epochs == {96: pytest.approx(217, abs=1), 160: pytest.approx(157, abs=1), 224: pytest.approx(80)}


@pytest.mark.parametrize("epochs", [1, 3, 7, 160, 200, 300])
@pytest.mark.parametrize("name", ["none", "efficienttrain"])
def test_whole_epochs_stay_whole(name: str, epochs: int) -> None:
    """The compute of 300 epochs of EfficientTrain buys 300 of them: not 300 and a rounding error."""
    stages = CURRICULA[name]().stages(224)
    mean_cost = sum(stage.cost for stage in stages) / len(stages)
    budget = Budget(epochs * mean_cost, 50_000, stages)
    assert budget.num_epochs == epochs
    assert len(budget.epoch_ends()) == epochs
    assert budget.last_epoch_fraction == 1.0


def test_without_a_curriculum_an_epoch_is_an_epoch() -> None:
    budget = Budget(4, 10, [FULL])
    assert budget.epoch_ends() == [0.25, 0.5, 0.75, 1.0]
    assert budget.samples_shown() == [40]


def test_half_an_epoch_is_a_budget_too() -> None:
    budget = Budget(0.5, 10, [FULL])
    assert (budget.epoch_ends(), budget.last_epoch_fraction) == ([1.0], 0.5)
    assert budget.progress(0, 0.25) == 0.5
    assert budget.progress(0, 0.8) == 1.0


def test_replay_reads_less_and_shows_as_much() -> None:
    plain = Budget(10, 100, [Stage(0.5, cost=0.25), FULL])
    replayed = Budget(10, 100, [Stage(0.5, cost=0.25, replay=4), FULL])
    assert (plain.num_epochs, replayed.num_epochs) == (25, 10)
    assert plain.samples_shown() == replayed.samples_shown() == [2000, 500]


@settings(deadline=None)
@given(budgets())
def test_epochs_end_in_order_and_the_last_at_one(budget: Budget) -> None:
    ends = budget.epoch_ends()
    assert len(ends) == math.ceil(budget.num_epochs)
    assert all(before < after for before, after in pairwise([0.0, *ends]))
    assert ends[-1] == 1.0
    assert 0 < budget.last_epoch_fraction <= 1
    assert budget.progress(len(ends) - 1, budget.last_epoch_fraction) == pytest.approx(1.0, abs=1e-9)
    assert [budget.progress(epoch, 1.0) for epoch in range(len(ends))] == ends


@settings(deadline=None)
@given(budgets(), st.integers(0, 60), st.floats(0, 1))
def test_progress_advances_by_the_cost_of_its_stage(budget: Budget, epoch: int, fraction: float) -> None:
    before, after = budget.progress(epoch, fraction), budget.progress(epoch, fraction + 1e-6)
    stage = budget.stage_at(before)
    if stage == budget.stage_at(after) and after < 1:
        assert (after - before) * budget.epochs == pytest.approx(1e-6 * stage.cost * stage.replay, rel=1e-3)


@settings(deadline=None)
@given(budgets(), st.integers(0, 60), st.integers(0, 2**31))
def test_progress_is_monotone_and_the_same_for_arrays(budget: Budget, epoch: int, seed: int) -> None:
    fractions = np.sort(np.random.default_rng(seed).random(50))
    progress = budget.progress(epoch, fractions)
    assert (np.diff(progress) >= 0).all()
    assert progress.tolist() == [budget.progress(epoch, float(fraction)) for fraction in fractions]
    assert progress.max() <= 1


def test_compute_of_all_samples_is_the_budget() -> None:
    stages = EfficientTrainPlusPlus(max_replay=4).stages(32)
    spent = sum(n * s.cost for n, s in zip(Budget(30, 500, stages).samples_shown(), stages, strict=True))
    assert spent == pytest.approx(30 * 500)


def test_the_end_belongs_to_the_last_stage() -> None:
    budget = Budget(2, 10, [Stage(0.5, size=16, cost=0.25), Stage(1.0, size=32)])
    assert [budget.stage_at(p).size for p in (0.0, 0.499, 0.5, 0.999, 1.0)] == [16, 16, 32, 32, 32]
