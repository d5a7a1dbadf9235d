"""Scores of losses that depend on what is drawn at a visit: strata and averages, by hand and against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from raytrain_speedup.methods.pruning import InfoBatch, OrderDP, SeTa
from raytrain_speedup.methods.pruning.scored import ScoredPruner, relative_to_stratum
from raytrain_speedup.settings import UserError

N, EPOCHS, MOMENTUM = 40, 8, 0.6


def drawn(epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, strata and which samples are met in an epoch."""
    rng = np.random.default_rng(epoch)
    losses, strata = rng.exponential(size=N), rng.integers(0, 4, N)
    met = np.flatnonzero(rng.random(N) < 0.7)
    return torch.from_numpy(losses * 10.0**strata).float(), torch.from_numpy(strata), torch.from_numpy(met)


def show(pruner: ScoredPruner, epoch: int, *, strata: bool = True) -> None:
    losses, met_in, met = drawn(epoch)
    pruner.plan(epoch)
    for part in met.split(7):
        if strata:
            pruner.stratify(part, met_in[part])
        pruner.observe(part, losses[part])


def by_hand(epochs: int, *, strata: bool, momentum: float | None) -> dict[int, float]:
    """The score of every sample that was met, in float64: a loss over the mean of those last met in its stratum,
    and the mean over visits with weights that fall by `momentum`."""
    last: dict[int, tuple[float, int]] = {}
    visits: dict[int, list[float]] = {}
    score: dict[int, float] = {}
    for epoch in range(epochs):
        losses, met_in, met = drawn(epoch)
        for i in met.tolist():
            last[i] = (losses[i].item(), met_in[i].item())
        means = {
            stratum: np.mean([loss for loss, its in last.values() if its == stratum]) for stratum in range(4)
        }
        score = {i: loss / (means[its] if strata else 1.0) for i, (loss, its) in last.items()}
        for i in met.tolist():
            visits.setdefault(i, []).append(score[i])
    if momentum is None:
        return score
    return {
        i: np.average(found, weights=momentum ** np.arange(len(found))[::-1]) for i, found in visits.items()
    }


@pytest.mark.parametrize("method", [InfoBatch, OrderDP, SeTa])
@pytest.mark.parametrize("momentum", [None, 0.0, MOMENTUM])
@pytest.mark.parametrize("strata", [False, True])
def test_scores_are_those_written_by_hand(
    method: type[ScoredPruner], momentum: float | None, strata: bool
) -> None:
    pruner = method(N, EPOCHS, score_momentum=momentum)
    for epoch in range(5):
        show(pruner, epoch, strata=strata)
    pruner.plan(5)
    expected = by_hand(5, strata=strata, momentum=momentum)
    scores, usable, _ = pruner._usable_scores()
    assert set(np.flatnonzero(usable)) == set(expected)
    for i, value in expected.items():
        assert scores[i] == pytest.approx(value, rel=1e-5)


def test_strata_may_be_left_alone() -> None:
    """As where a search varies by what is pruned: under the same task."""
    pruner = InfoBatch(N, EPOCHS, score_strata=False)
    show(pruner, 0)
    scores, usable, _ = pruner._usable_scores()
    losses, _, met = drawn(0)
    assert torch.equal(torch.from_numpy(scores[usable]), losses[met]) and "strata" not in pruner.state_dict()


def test_infobatch_drops_below_the_mean_of_these_scores() -> None:
    pruner = InfoBatch(N, EPOCHS, prune_ratio=0.5, score_momentum=MOMENTUM)
    for epoch in range(3):
        show(pruner, epoch)
    plan = pruner.plan(3)
    score = by_hand(3, strata=True, momentum=MOMENTUM)
    mean = np.mean(list(score.values()))
    below = {i for i, value in score.items() if value < mean}
    assert plan.stats["eligible"] == len(below) and plan.stats["threshold"] == pytest.approx(mean, rel=1e-5)
    dropped = set(range(N)) - set(plan.indices.tolist())
    assert dropped < below and len(dropped) == len(below) // 2


def test_a_loss_that_is_not_finite_leaves_the_others_alone() -> None:
    """Neither the mean of its stratum nor the sample's average takes it up."""
    pruner = InfoBatch(4, EPOCHS, score_momentum=0.5)
    everyone, strata = torch.arange(4), torch.tensor([0, 0, 1, 1])
    for epoch, losses in enumerate(([1.0, 3.0, 10.0, 30.0], [2.0, 4.0, float("nan"), 7.0])):
        pruner.plan(epoch)
        pruner.stratify(everyone, strata)
        pruner.observe(everyone, torch.tensor(losses))
    stats = pruner.plan(2).stats
    assert stats["nonfinite"] == 1 and pruner.visits.tolist() == [2, 2, 1, 2]
    expected = [(0.5 + 2 * 2 / 3) / 3, (1.5 + 2 * 4 / 3) / 3, 0.5, (1.5 + 2 * 1) / 3]
    np.testing.assert_allclose(pruner.average, expected, rtol=1e-6)


def test_a_stratum_without_a_mean_keeps_its_scores() -> None:
    scores, usable = np.array([0, 0, 2, 6], np.float32), np.ones(4, np.bool_)
    found = relative_to_stratum(scores, usable, np.array([0, 0, 2, 2]))
    assert found.tolist() == [0, 0, 0.5, 1.5] and found.dtype == np.float32


def test_they_find_the_order_that_single_losses_hide() -> None:
    """Samples of known hardness, met in strata of which one has a hundred times the losses of another."""
    hardness, rng = np.linspace(1, 2, 400), np.random.default_rng(0)
    found = {}
    for name, momentum, strata in (("last", None, False), ("strata", None, True), ("both", 0.9, True)):
        pruner = InfoBatch(400, 30, score_momentum=momentum, prune_ratio=0.0)
        for epoch in range(20):
            pruner.plan(epoch)
            met_in = rng.integers(0, 5, 400)
            losses = hardness * 10 ** (met_in / 2) * rng.gamma(10, 0.1, 400)
            if strata:
                pruner.stratify(torch.arange(400), torch.from_numpy(met_in))
            pruner.observe(torch.arange(400), torch.from_numpy(losses))
        pruner.plan(20)
        found[name] = spearmanr(pruner._usable_scores()[0], hardness).statistic
    assert found["last"] < 0.4 < found["strata"] < 0.75 and found["both"] > 0.9, found


def test_what_is_not_allowed_is_one_line() -> None:
    with pytest.raises(UserError, match=r"score_momentum: 1\.0 is not allowed"):
        InfoBatch(N, EPOCHS, score_momentum=1.0)
