"""A requested saving is met over the run, annealing included, or refused before it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup.methods.pruning import DynamicRandom, InfoBatch, equal_epochs
from raytrain_speedup.methods.pruning.timetable import Timetable
from raytrain_speedup.settings import UserError

N = 2000


def normal(epoch: int) -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(epoch))


LOSSES = {
    "symmetric": lambda epoch: normal(epoch) + 5,
    "long tail above": lambda epoch: (2 * normal(epoch)).exp(),
    "few below the mean": lambda epoch: 5 - (2 * normal(epoch)).exp(),
    "one outlier below": lambda epoch: torch.cat((torch.tensor([-1000.0]), normal(epoch)[1:])),
    "all equal": lambda epoch: torch.ones(N),
    "mostly zero": lambda epoch: normal(epoch).sub(1.5).clamp(min=0),
    "changing shape": lambda epoch: (normal(epoch) * (epoch / 3)).exp() * (-1) ** epoch,
}


def saving_of(pruner, losses, last_epoch_fraction: float = 1.0) -> float:
    """Fraction of the run's sample passes that a loop over `pruner` does not make."""
    shown = passes = 0.0
    last = len(pruner.epoch_ends) - 1
    for epoch in range(last + 1):
        plan = pruner.plan(epoch)
        fraction = last_epoch_fraction if epoch == last else 1.0
        pruner.observe(plan.indices, losses(epoch)[plan.indices])
        shown += fraction * plan.kept
        passes += fraction * N
    return 1 - shown / passes


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize(("epochs", "saving"), [(8, 0.3), (8, 0.47), (40, 0.2), (40, 0.53), (3, 0.1), (5, 0)])
def test_a_saving_is_met_within_a_point(losses, epochs, saving):
    assert saving_of(InfoBatch(N, epochs, saving=saving), losses) == pytest.approx(saving, abs=0.01)
    assert saving_of(DynamicRandom(N, epochs, saving=saving), losses) == pytest.approx(saving, abs=0.01)


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("method", [InfoBatch, DynamicRandom])
def test_unequal_epochs_and_a_last_one_cut_short(losses, method):
    """A curriculum: cheap epochs are short in progress. Its last epoch is pruned and cut at progress 1."""
    ends = [0.02, 0.05, 0.1, 0.16, 0.3, 0.5, 0.8, 1.0]
    saving = saving_of(method(N, ends, saving=0.4), losses)
    assert saving == pytest.approx(0.4, abs=0.01)
    cut = method(N, ends, saving=0.5, anneal_from=1.0, last_epoch_fraction=0.25)
    assert saving_of(cut, losses, 0.25) == pytest.approx(0.5, abs=0.01)


@given(
    st.lists(st.integers(1, 20), min_size=3, max_size=15),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.3),
    st.floats(0.3, 1.0),
    st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_any_reachable_saving_is_met(lengths, fraction, prune_from, anneal_from, part):
    ends = (torch.tensor(lengths).cumsum(0) / sum(lengths)).tolist()
    timetable = Timetable.of(ends, prune_from, anneal_from, fraction)
    saving = part * timetable.reachable_saving(0.75 * 0.85)
    pruner = InfoBatch(
        N, ends, saving=saving, prune_from=prune_from, anneal_from=anneal_from, last_epoch_fraction=fraction
    )
    assert saving_of(pruner, LOSSES["changing shape"], fraction) == pytest.approx(saving, abs=0.01)


def test_a_shortfall_is_made_up_by_later_epochs():
    """In epochs 1 and 2 nothing can be dropped: no loss is finite."""

    def late(epoch):
        return normal(epoch) if epoch >= 2 else torch.full((N,), torch.nan)

    assert saving_of(InfoBatch(N, 10, saving=0.3), late) == pytest.approx(0.3, abs=0.01)


def test_the_mean_decides_who_is_eligible_while_it_suffices():
    pruner = InfoBatch(N, 8, saving=0.2)
    losses = normal(0)
    pruner.observe(torch.arange(N), losses)
    plan = pruner.plan(1)
    assert plan.stats["eligible"] == (losses < losses.double().mean()).sum()


def test_the_threshold_is_raised_no_further_than_needed_and_weights_stay_below_four():
    pruner = InfoBatch(N, 8, saving=0.45)
    losses = normal(0)
    pruner.observe(torch.arange(N), losses)
    plan = pruner.plan(1)
    assert plan.stats["eligible"] == -(-plan.stats["dropped"] * 4 // 3)
    assert plan.weights.max() <= 4.01
    kept_high = set(plan.indices.tolist()) >= set(losses.argsort()[int(plan.stats["eligible"]) :].tolist())
    assert kept_high


def test_ties_for_the_last_eligible_places_are_drawn_anew_in_every_epoch():
    """All losses are equal and 85 % are eligible: were those always the same, the rest would never be dropped."""
    pruner = InfoBatch(N, 10, saving=0.44)
    pruner.observe(torch.arange(N), torch.ones(N))
    shown = torch.zeros(N, dtype=torch.int64)
    for epoch in range(1, 8):
        shown[pruner.plan(epoch).indices] += 1
    assert (shown == 7).float().mean() < 0.02


@pytest.mark.parametrize(("method", "most"), [(InfoBatch, 0.75 * 0.85), (DynamicRandom, 0.75)])
def test_a_saving_out_of_reach_is_refused_with_the_reachable_one(method, most):
    reachable = most * 6 / 8  # 8 epochs, the first for warm-up, the last for annealing
    method(N, 8, saving=reachable)
    with pytest.raises(
        UserError, match=f"saving: 0.7 is out of reach; expected at most {int(reachable * 1e4) / 1e4}"
    ):
        method(N, 8, saving=0.7)
    with pytest.raises(
        UserError, match=r"expected at most 0\.0, as 0 of the 2 epochs may be pruned \(all but"
    ):
        method(N, 2, saving=0.1)


def test_a_saving_is_kept_on_course_across_a_resumption():
    ends = equal_epochs(10)
    straight = InfoBatch(N, ends, saving=0.35)
    expected = saving_of(straight, LOSSES["few below the mean"])
    first = InfoBatch(N, ends, saving=0.35)
    shown = 0
    for epoch in range(10):
        plan = first.plan(epoch)
        first.observe(plan.indices, LOSSES["few below the mean"](epoch)[plan.indices])
        shown += plan.kept
        resumed = InfoBatch(N, ends, saving=0.35)
        resumed.load_state_dict(first.state_dict())
        first = resumed
    assert 1 - shown / (10 * N) == expected
