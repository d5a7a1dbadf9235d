"""RS2, OrderDP and SeTa against a naive form of their papers, sample by sample."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch

from raytrain_speedup.methods.pruning import RS2, OrderDP, OrderDPSettings, RS2Settings, SeTa, SeTaSettings
from raytrain_speedup.settings import UserError

N = 60


def told(pruner, losses: torch.Tensor):
    """The pruner after it has seen these losses (N,)."""
    pruner.observe(torch.arange(len(losses)), losses)
    return pruner


def shuffled_losses(seed: int) -> torch.Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed)).float()


def saved(pruner, last_epoch_fraction: float = 1.0) -> float:
    """The fraction of the run's sample passes that are not made."""
    plans = [pruner.plan(epoch) for epoch in range(len(pruner.epoch_ends))]
    fractions = [1.0] * (len(plans) - 1) + [last_epoch_fraction]
    shown = sum(f * plan.kept for f, plan in zip(fractions, plans, strict=True))
    return 1 - shown / (pruner.num_samples * sum(fractions))


@pytest.mark.parametrize("settings", [RS2Settings, OrderDPSettings, SeTaSettings])
@pytest.mark.parametrize("saving", [0.3, 0.5, 0.8])
def test_a_saving_is_met_to_the_sample_and_nothing_is_rescaled(settings, saving):
    ends = [0.02, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0]
    pruner = settings(saving=saving).build(10_007, ends, seed=1, last_epoch_fraction=0.4)
    assert saved(pruner, 0.4) == pytest.approx(saving, abs=1e-3)
    plan = pruner.plan(3)
    assert plan.rescale == "none"
    assert (plan.weights == 1).all()


def test_rs2_shows_a_fresh_uniform_subset_from_the_first_epoch_to_the_last():
    epochs = 600
    pruner = RS2(12, epochs, prune_ratio=0.75)
    plans = [pruner.plan(epoch) for epoch in range(epochs)]
    assert {plan.kept for plan in plans} == {3}
    subsets = Counter(frozenset(plan.indices.tolist()) for plan in plans)
    assert len(subsets) > 190  # of 220; a method that keeps its subset, or deals out passes, shows far fewer
    shown = torch.bincount(torch.cat([plan.indices for plan in plans]), minlength=12)
    assert ((shown - epochs / 4).abs() < 5 * math.sqrt(epochs * 3 / 16)).all()


def test_rs2_may_show_one_sample_in_a_hundred():
    """No survivor stands for others, so the cap on weights does not hold it back."""
    assert RS2(1000, 10, prune_ratio=0.99).plan(0).kept == 10
    assert RS2(3, 10, prune_ratio=0.99).plan(0).kept == 1


def test_orderdp_shows_the_sample_of_each_rank_as_often_as_the_paper_says():
    """Its eq. for P(j), in exact arithmetic: N = 10, s = 7 are drawn, the q = 4 with the highest losses shown."""
    n, s, q, epochs = 10, 7, 4, 1500
    pruner = told(OrderDP(n, epochs, prune_ratio=0.6, random_fraction=0.5), torch.arange(10.0))
    plans = [pruner.plan(epoch) for epoch in range(epochs)]
    assert {plan.kept for plan in plans} == {q}
    shown = torch.bincount(torch.cat([plan.indices for plan in plans]), minlength=n).flip(
        0
    )  # highest loss first
    for rank in range(1, n + 1):
        chance = sum(
            Fraction(math.comb(rank - 1, l - 1) * math.comb(n - rank, s - l), math.comb(n, s))
            for l in range(1, q + 1)  # noqa: E741
        )
        spread = math.sqrt(epochs * chance * (1 - chance)) or 0.5
        assert abs(shown[rank - 1] - epochs * float(chance)) < 5 * spread


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_orderdp_at_its_ends_is_top_q_and_a_random_subset(fraction):
    losses = shuffled_losses(0)
    pruner = told(OrderDP(N, 9, prune_ratio=0.4, random_fraction=fraction), losses)
    hardest = set(losses.argsort(descending=True)[:36].tolist())
    subsets = [set(pruner.plan(epoch).indices.tolist()) for epoch in range(9)]
    assert all(len(subset) == 36 for subset in subsets)
    assert all((subset == hardest) is (fraction == 0) for subset in subsets)


def test_orderdp_by_default_has_the_authors_amounts():
    """Three quarters are drawn, 85 % of them shown."""
    losses = torch.arange(1000.0)
    plan = told(OrderDP(1000, 5), losses).plan(1)
    assert plan.kept == round(0.85 * 750)
    hardest = torch.arange(850, 1000)
    assert 0.68 < torch.isin(hardest, plan.indices).float().mean() < 0.82  # those left out were not drawn


def test_orderdp_shows_what_it_has_not_seen_first_and_what_is_not_finite():
    losses = shuffled_losses(0)
    pruner = OrderDP(N, 9, prune_ratio=0.5, random_fraction=0.0)
    first = pruner.plan(0).indices
    pruner.observe(first, losses[first])
    unseen = set(range(N)) - set(first.tolist())
    assert set(pruner.plan(1).indices.tolist()) == unseen
    easiest = int(losses.argmin())
    losses[easiest] = torch.nan
    pruner.observe(torch.arange(N), losses)
    assert easiest in pruner.plan(2).indices


def naive_seta(losses: torch.Tensor, drawn: set[int], epoch: int, groups: int, width: int) -> set[int]:
    """Sort those drawn, cut into groups, show the window's."""
    ranked = sorted(drawn, key=lambda i: losses[i])
    cuts = [g * len(ranked) // groups for g in range(groups + 1)]
    parts = [ranked[a:b] for a, b in itertools.pairwise(cuts)]
    start = epoch % (groups - width + 1)
    return set().union(*parts[start : start + width])


def test_seta_slides_its_window_from_easy_to_hard_and_anneals_on_a_random_part():
    pruner = SeTa(N, 16, prune_ratio=0.0, groups=6, window=0.5)
    for epoch in range(16):
        losses = shuffled_losses(epoch)
        shown = set(pruner.plan(epoch).indices.tolist())
        if epoch == 0 or epoch >= 14:
            assert len(shown) == N
        else:
            assert shown == naive_seta(shuffled_losses(epoch - 1), set(range(N)), epoch, 6, 3)
        pruner.observe(torch.arange(N), losses)


def test_seta_makes_its_groups_of_a_fresh_random_part():
    pruner = told(SeTa(N, 16, prune_ratio=0.25, groups=5, window=0.4), torch.arange(float(N)))
    assert [pruner.plan(epoch).kept for epoch in (0, 14, 15)] == [45] * 3
    assert set(pruner.plan(14).indices.tolist()) != set(pruner.plan(15).indices.tolist())
    windows = {epoch: pruner.plan(epoch).indices.sort().values for epoch in range(1, 14)}
    assert all(len(shown) == 18 for shown in windows.values())
    for start in range(4):  # the same window again, of another random part
        again = [shown for epoch, shown in windows.items() if epoch % 4 == start]
        assert not torch.equal(again[0], again[1])
    middles = [windows[epoch].float().mean() for epoch in (4, 5, 6, 7)]
    assert middles == sorted(middles)
    assert windows[4].float().mean() == pytest.approx(0.2 * N, abs=5)
    assert windows[7].float().mean() == pytest.approx(0.8 * N, abs=5)


def test_seta_by_default_has_the_authors_groups():
    pruner = told(SeTa(1000, 16), torch.arange(1000.0))
    assert [pruner.plan(epoch).kept for epoch in (0, 1, 15)] == [900, 720, 900]


def test_seta_refuses_a_saving_that_its_window_alone_exceeds():
    """13 of 16 epochs show 4 of 5 groups: 13/16 * .2 is saved before anything goes at random."""
    assert saved(SeTa(1000, 16, saving=0.1625)) == pytest.approx(0.1625, abs=1e-3)
    with pytest.raises(
        UserError, match=r"saving: 0.1 is out of reach; expected from 0.1625, which the window"
    ):
        SeTa(1000, 16, saving=0.1)


def test_of_equal_losses_any_may_be_shown():
    """Ties are drawn anew in every epoch: otherwise the same samples would never be seen."""
    for pruner in (OrderDP(N, 40, prune_ratio=0.5, random_fraction=0.0), SeTa(N, 40, window=0.4)):
        told(pruner, torch.ones(N))
        shown = torch.cat([pruner.plan(epoch).indices for epoch in range(1, 30)])
        assert len(shown.unique()) == N
