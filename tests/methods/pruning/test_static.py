"""The static controls against their papers' formulas, sample by sample in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from raytrain_speedup.methods.pruning import EL2N, DynUnc, Forgetting

N, EPOCHS, JUDGED = 40, 20, 8

P = np.random.default_rng(0).uniform(0.02, 0.98, (JUDGED, N))
"""The probability of each label after each epoch of the first phase."""
P[:, 5] = np.linspace(0.1, 0.45, JUDGED)  # never right


def subset_of(pruner, probabilities: np.ndarray = P, *, missing: int | None = None) -> set[int]:
    """Who stays, after a first phase in which labels had these probabilities; nothing changes it afterwards."""
    for epoch, row in enumerate(probabilities):
        plan = pruner.plan(epoch)
        assert plan.kept == N and plan.rescale == "none"
        losses = torch.tensor(-np.log(row), dtype=torch.float32)
        index = plan.indices if missing is None else plan.indices[plan.indices != missing]
        pruner.observe(index, losses[index])
    plans = []
    for epoch in range(len(probabilities), EPOCHS):
        plans.append(pruner.plan(epoch))
        pruner.observe(plans[-1].indices, torch.rand(plans[-1].kept))
    assert len({frozenset(plan.indices.tolist()) for plan in plans}) == 1
    assert len({tuple(plan.indices.tolist()) for plan in plans}) == len(plans)  # in another order every time
    assert all((plan.weights == 1).all() for plan in plans)
    return set(plans[0].indices.tolist())


def top(importance: list[float], count: int) -> set[int]:
    return set(sorted(range(N), key=lambda i: importance[i], reverse=True)[:count])


PHASE = {"prune_from": JUDGED / EPOCHS, "prune_ratio": 0.5}


def test_el2n_keeps_the_largest_mean_errors():
    errors = [sum(1 - P[e, i] for e in range(JUDGED)) / JUDGED for i in range(N)]
    assert subset_of(EL2N(N, EPOCHS, **PHASE)) == top(errors, 20)


def test_the_norm_of_the_error_lies_where_the_page_says():
    softmax = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1).double()
    el2n = (softmax - torch.nn.functional.one_hot(torch.arange(500) % 7, 7)).norm(dim=1)
    error = 1 - softmax[torch.arange(500), torch.arange(500) % 7]
    assert (el2n >= error - 1e-12).all() and (el2n <= math.sqrt(2) * error + 1e-12).all()


def test_forgetting_counts_from_right_to_wrong_and_keeps_what_was_never_right():
    events = []
    for i in range(N):
        right = [P[e, i] > 0.5 for e in range(JUDGED)]
        count = sum(a and not b for a, b in itertools.pairwise(right))
        events.append(math.inf if not any(right) else count)
    kept = subset_of(Forgetting(N, EPOCHS, **PHASE))
    assert 5 in kept and len(kept) == 20
    worst_kept, best_dropped = min(events[i] for i in kept), max(events[i] for i in set(range(N)) - kept)
    assert worst_kept >= best_dropped
    assert len(set(events)) >= 4  # there is something to count


@pytest.mark.parametrize("window", [3, 5, 8, 10])
def test_dyn_unc_keeps_the_largest_mean_deviation_over_the_windows(window):
    """Windows longer than the phase are as long as that."""
    length = min(window, JUDGED)
    uncertainty = []
    for i in range(N):
        windows = [P[k : k + length, i] for k in range(JUDGED - length + 1)]
        deviations = [math.sqrt(sum((w - w.mean()) ** 2) / (length - 1)) for w in windows]
        uncertainty.append(sum(deviations) / len(deviations))
    assert subset_of(DynUnc(N, EPOCHS, window=window, **PHASE)) == top(uncertainty, 20)


@pytest.mark.parametrize("method", [EL2N, Forgetting, DynUnc])
def test_a_sample_without_a_loss_stays(method):
    probabilities = P.copy()
    probabilities[:, 9] = 0.97  # as easy as they come, were it seen
    assert 9 not in subset_of(method(N, EPOCHS, **PHASE), probabilities)
    assert 9 in subset_of(method(N, EPOCHS, **PHASE), probabilities, missing=9)


@pytest.mark.parametrize("method", [EL2N, Forgetting, DynUnc])
def test_a_saving_counts_the_first_phase(method):
    pruner = method(N, EPOCHS, prune_from=JUDGED / EPOCHS, saving=0.3)
    assert len(subset_of(pruner)) == N - 0.3 * N * EPOCHS / (EPOCHS - JUDGED)
    uneven = method(N, EPOCHS, prune_from=JUDGED / EPOCHS, saving=0.31)  # 20.67 dropped in an epoch
    assert N - len(subset_of(uneven)) in (20, 21)


def test_without_losses_all_data_is_shown():
    assert EL2N(N, EPOCHS).plan(10).kept == N
