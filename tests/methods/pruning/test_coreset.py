"""Dataset quantization against its formula, summed pair by pair, and with InfoBatch within."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from raytrain_speedup.engine.counted_pruner import CountedPruner
from raytrain_speedup.methods.pruning import DQSettings, InfoBatchSettings, equal_epochs
from raytrain_speedup.methods.pruning.coreset import graph_cut_bins
from raytrain_speedup.settings import UserError

N, EPOCHS = 40, 8


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(seed)) + 100


def bins_by_hand(values: np.ndarray, bins: int) -> list[list[int]]:
    """The gain of every free sample in every turn, from all squared distances."""
    distance = np.square(values[:, None] - values[None]).sum(2)
    free, found = set(range(len(values))), []
    for number in range(bins):
        size = len(values) * (number + 1) // bins - len(values) * number // bins
        own: list[int] = []
        for _ in range(size):
            gain = {
                x: sum(distance[p, x] for p in own) - sum(distance[p, x] for p in free) for x in sorted(free)
            }
            best = max(gain, key=lambda x: gain[x])
            own.append(best)
            free.remove(best)
        found.append(own)
    return found


def pruner(seed: int = 0, **settings: object):
    return DQSettings.model_validate({"method": "dq", **settings}).build(N, equal_epochs(EPOCHS), seed=seed)


@pytest.mark.parametrize("bins", [1, 3, 8])
def test_bins_take_what_has_the_largest_gain(bins: int) -> None:
    values = features()
    found = graph_cut_bins(values, bins)
    assert [each.tolist() for each in found] == bins_by_hand(values.double().numpy(), bins)
    assert len(graph_cut_bins(values, 99)) == N


def test_every_bin_gives_the_same_fraction() -> None:
    method = pruner(fraction=0.3, bins=4)
    method.describe(features())
    plans = [method.plan(epoch) for epoch in range(EPOCHS)]
    shown = set(plans[0].indices.tolist())
    for members in graph_cut_bins(features(), 4):
        assert len(shown & set(members.tolist())) == 3
    assert all(set(plan.indices.tolist()) == shown and (plan.weights == 1).all() for plan in plans)
    assert {plan.kept_fraction for plan in plans} == {0.3} and plans[0].rescale == "none"
    other = pruner(seed=1, fraction=0.3, bins=4)
    other.describe(features())
    assert set(other.plan(0).indices.tolist()) != shown, "which of a bin is drawn by the seed"


def test_another_method_plans_the_coreset_as_if_there_were_no_other_data() -> None:
    """InfoBatch on 20 samples of their own, told the same losses and strata."""
    method = pruner(fraction=0.5, bins=5, within={"method": "infobatch"})
    method.describe(features())
    coreset = torch.tensor(sorted(method.plan(0).indices.tolist()))
    alone = InfoBatchSettings().build(len(coreset), equal_epochs(EPOCHS), seed=0)
    kept = []
    for epoch in range(EPOCHS):
        plan, expected = method.plan(epoch), alone.plan(epoch)
        assert torch.equal(plan.indices, coreset[expected.indices])
        assert torch.equal(plan.weights, expected.weights) and plan.num_samples == N
        kept.append(plan.kept)
        losses, strata = (plan.indices * 7 % 11).float(), plan.indices % 3
        method.stratify(plan.indices, strata)
        alone.stratify(expected.indices, strata)
        method.observe(plan.indices, losses)
        alone.observe(expected.indices, losses)
        method.exchange()
    assert min(kept) < 20 and max(kept) == 20


def test_a_checkpoint_knows_the_coreset() -> None:
    """A run that goes on is told no features, or others."""
    first = pruner(fraction=0.5, within={"method": "infobatch"})
    first.describe(features())
    plan = first.plan(0)
    first.observe(plan.indices, plan.indices.float())
    again = pruner(fraction=0.5, within={"method": "infobatch"})
    again.describe(features(seed=5))
    assert not torch.equal(again.plan(0).indices, plan.indices)
    again.load_state_dict(first.state_dict())
    for epoch in (0, 1, 2):
        assert torch.equal(again.plan(epoch).indices, first.plan(epoch).indices)
        assert torch.equal(again.plan(epoch).weights, first.plan(epoch).weights)


def test_without_features_all_is_shown_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    method = pruner()
    with caplog.at_level(logging.WARNING):
        assert [method.plan(epoch).kept for epoch in range(EPOCHS)] == [N] * EPOCHS
    assert caplog.text.count("dq was told no features") == 1


def test_a_script_tells_the_pruner_that_it_is_given() -> None:
    counted = CountedPruner(pruner(fraction=0.5))
    counted.describe(features())
    assert counted.plan(0).kept == N // 2 == counted.kept[0]


@pytest.mark.parametrize("wrong", [features()[:-1], features()[:, 0], features() * torch.inf])
def test_features_that_are_not_of_all_samples_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(
        UserError, match=r"^pruning: features of shape .*expected finite ones, \(N, d\) for the 40"
    ):
        pruner().describe(wrong)
