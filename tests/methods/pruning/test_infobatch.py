"""InfoBatch itself, and one test for each fault of its public implementation."""

import math
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from raytrain_speedup.methods.pruning import DynamicRandom, InfoBatch, InfoBatchSettings, shard
from raytrain_speedup.methods.pruning.infobatch import mean_threshold, quantile_thresholds
from raytrain_speedup.settings import UserError


def observed(losses, **options) -> InfoBatch:
    """A pruner of 10 epochs that has seen these losses, ready to plan epoch 1."""
    losses = torch.as_tensor(losses)
    pruner = InfoBatch(len(losses), epochs=10, **options)
    pruner.observe(torch.arange(len(losses)), losses)
    return pruner


def exponential(n: int, seed: int = 0) -> torch.Tensor:
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(seed))


# --- the algorithm ---


def test_only_samples_strictly_below_the_mean_are_dropped():
    losses = torch.tensor([0.0] * 40 + [1.0] * 20 + [2.0] * 40)
    plan = observed(losses, prune_ratio=0.5).plan(1)
    shown = set(plan.indices.tolist())
    assert shown >= set(range(40, 100))
    assert len(shown) == 80
    assert plan.stats["threshold"] == 1.0
    assert plan.stats["eligible"] == 40
    assert plan.stats["dropped"] == 20
    weight = dict(zip(plan.indices.tolist(), plan.weights.tolist(), strict=True))
    assert {weight[i] for i in shown if i < 40} == {2.0}
    assert {weight[i] for i in shown if i >= 40} == {1.0}


@pytest.mark.parametrize("eligible", [1, 2, 3, 7, 10, 333])
@pytest.mark.parametrize("prune_ratio", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_weights_are_the_realised_ratio_and_nobody_is_left_without_a_stand_in(eligible, prune_ratio):
    plan = observed([0.0] * eligible + [1.0] * 10, prune_ratio=prune_ratio).plan(1)
    own = plan.weights[plan.indices < eligible]
    assert len(own) == max(math.ceil(eligible / 10), eligible - round(prune_ratio * eligible))
    assert (own == np.float32(eligible / len(own))).all()


@pytest.mark.parametrize("eligible", range(1, 60))
def test_no_survivor_weighs_more_than_ten(eligible):
    """Of 15 samples, r = .9 rounds to 14: the one left would weigh 15."""
    assert observed([0.0] * eligible + [1.0] * 10, prune_ratio=0.9).plan(1).weights.max() <= 10
    banded = observed(torch.arange(float(eligible)), threshold="quantile", quantiles=(0.9,), keep=(0.1,))
    assert banded.plan(1).weights.max() <= 10
    assert DynamicRandom(eligible, 10, prune_ratio=0.9).plan(1).weights.max() <= 10


def test_the_weighted_sum_is_unbiased():
    """Over 4,000 seeds, within 4 of its own standard errors; the nominal 1 / (1 - r) is off by far more."""
    losses = exponential(101)
    values = losses.double().numpy()
    sums, nominal = [], []
    for seed in range(4000):
        plan = observed(losses, prune_ratio=0.7, seed=seed).plan(1)
        shown = values[plan.indices.numpy()]
        weights = plan.weights.double().numpy()
        sums.append((shown * weights).sum())
        nominal.append((shown * np.where(weights > 1, 1 / 0.3, 1)).sum())
    error = np.std(sums) / len(sums) ** 0.5
    assert abs(np.mean(sums) - values.sum()) < 4 * error
    assert abs(np.mean(nominal) - values.sum()) > 4 * error


def test_every_eligible_sample_is_kept_equally_often():
    losses = exponential(60)
    kept = np.zeros(60)
    for seed in range(3000):
        kept[observed(losses, prune_ratio=0.5, seed=seed).plan(1).indices.numpy()] += 1
    eligible = (losses < losses.mean()).numpy()
    assert (kept[~eligible] == 3000).all()
    fraction = 1 - round(0.5 * eligible.sum()) / eligible.sum()
    assert abs(kept[eligible] - 3000 * fraction).max() < 5 * (3000 * fraction * (1 - fraction)) ** 0.5


def test_quantile_bands_are_dropped_and_weighted_each_by_its_realised_ratio():
    losses = torch.arange(1000, dtype=torch.float32)[torch.randperm(1000)]
    plan = observed(losses, threshold="quantile").plan(1)
    shown = losses[plan.indices]
    low, middle, high = shown < 199.8, (shown >= 199.8) & (shown < 849.15), shown >= 849.15
    assert (low.sum(), middle.sum(), high.sum()) == (50, 325, 150)
    assert (plan.weights[low] == 4).all()
    assert (plan.weights[middle] == 2).all()
    assert (plan.weights[high] == 1).all()


def test_pruned_samples_keep_their_stale_score():
    pruner = observed(exponential(100))
    before = pruner.scores.clone()
    plan = pruner.plan(1)
    pruner.observe(plan.indices, torch.full((plan.kept,), 9.0))
    dropped = torch.ones(100, dtype=torch.bool)
    dropped[plan.indices] = False
    assert torch.equal(pruner.scores[dropped], before[dropped])
    assert (pruner.scores[plan.indices] == 9).all()


def test_epochs_before_prune_from_are_full_though_scores_exist():
    pruner = observed(exponential(100), prune_from=0.3)
    assert [pruner.plan(epoch).kept == 100 for epoch in range(5)] == [True, True, True, False, False]


def test_equal_scores_are_dropped_at_a_quantile_that_no_sample_lies_below():
    """Strictly below: of 100 samples, the 60 of loss 0 lie below no quantile up to the 60th place."""
    plan = observed(
        [0.0] * 60 + [1.0] * 40, threshold="quantile", quantiles=(0.2, 0.5), keep=(0.25, 0.5)
    ).plan(1)
    assert plan.kept == 100
    plan = observed(
        [0.0] * 60 + [1.0] * 40, threshold="quantile", quantiles=(0.2, 0.7), keep=(0.25, 0.5)
    ).plan(1)
    assert plan.stats["eligible"] == 60
    assert plan.stats["dropped"] == 30


def test_an_epoch_planned_twice_is_the_same_whatever_was_observed_meanwhile():
    pruner = observed(exponential(100))
    plan = pruner.plan(1)
    pruner.observe(plan.indices, exponential(plan.kept, seed=1))
    again = pruner.plan(1)
    assert torch.equal(again.indices, plan.indices)
    assert torch.equal(again.weights, plan.weights)


def test_usable_alone_in_five_lines_of_a_plain_loop():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    y = x @ torch.arange(5.0)
    model = torch.nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shown = 0

    pruner = InfoBatch(len(x), epochs=20, prune_ratio=0.5)
    for epoch in range(20):
        for index, weight in pruner.plan(epoch).batches(32):
            losses = (model(x[index]).squeeze(1) - y[index]) ** 2
            pruner.observe(index, losses)
            (losses * weight).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            shown += len(index)

    assert shown < 0.8 * 20 * 200
    assert ((model(x).squeeze(1) - y) ** 2).mean() < 0.01


# --- the faults of the public implementation, in the order of the reference ---


def test_fault_1_look_ahead_scores_the_right_samples():
    """Index and weight travel in the batch, so a loader one batch ahead changes nothing."""
    pruner = InfoBatch(100, epochs=10)
    ahead = list(pruner.plan(0).batches(16))
    for (index, _), _being_loaded in pairwise([*ahead, None]):
        pruner.observe(index, index.float())
    assert torch.equal(pruner.scores, torch.arange(100.0))


def test_fault_2_iterating_a_plan_is_fresh_and_ends():
    plan = observed(exponential(100)).plan(1)
    first, second = (torch.cat([index for index, _ in plan.batches(16)]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, plan.indices)


def test_fault_3_annealing_starts_cleanly_where_epochs_times_delta_is_fractional():
    """10 epochs x .875 = 8.75: the epoch that crosses the boundary is full, with no stale weight in it."""
    pruner = observed(exponential(500))
    plans = [pruner.plan(epoch) for epoch in range(10)]
    assert [plan.kept < 500 for plan in plans] == [False] + [True] * 7 + [False] * 2
    for plan in plans[8:]:
        assert (plan.weights == 1).all()


def test_fault_3_annealing_boundary_is_in_progress_not_in_epochs():
    ends = [0.1, 0.2, 0.45, 0.875 + 1e-12, 0.9, 1.0]
    pruner = InfoBatchSettings().build(50, ends, seed=0)
    pruner.observe(torch.arange(50), exponential(50))
    assert [pruner.plan(epoch).kept < 50 for epoch in range(6)] == [False, True, True, True, False, False]


def test_fault_4_the_mean_of_14197122_equal_scores_is_that_score():
    scores = np.full(14_197_122, 9.951, dtype=np.float32)
    assert mean_threshold(scores) == scores[0]
    assert scores.cumsum(dtype=np.float32)[-1] / np.float32(len(scores)) != scores[0]  # the fault is real
    del scores
    assert observed([9.951] * 1000).plan(1).kept == 1000


def test_fault_4_an_epoch_without_scores_is_full():
    pruner = InfoBatch(100, epochs=10)
    assert pruner.plan(5).kept == 100


def test_fault_4_unobserved_samples_are_never_eligible_and_not_in_the_mean():
    pruner = InfoBatch(100, epochs=10, prune_ratio=0.9)
    pruner.observe(torch.arange(50), torch.tensor([1.0] * 25 + [3.0] * 25))
    plan = pruner.plan(1)
    assert set(plan.indices.tolist()) >= set(range(25, 100))
    assert plan.stats["threshold"] == 2
    assert plan.stats["unobserved"] == 50


def test_fault_4_a_score_of_zero_counts_as_a_score():
    assert observed([0.0] * 50 + [1.0] * 50).plan(1).stats["eligible"] == 50


@pytest.mark.parametrize("seed", range(20))
def test_comparing_in_float32_decides_as_the_exact_mean_does(seed):
    values = np.random.default_rng(seed).normal(2, 1, 5).astype(np.float32)
    exact = sum(map(float, values)) / 5
    assert (values < mean_threshold(values)).tolist() == [float(value) < exact for value in values]
    (median,) = quantile_thresholds(values[:4], [0.5])
    middle = np.sort(values[:4]).astype(float)[1:3].mean()
    assert (values[:4] < median).tolist() == [float(value) < middle for value in values[:4]]


@pytest.mark.parametrize("options", [{}, {"threshold": "quantile", "quantiles": (0.5,), "keep": (0.5,)}])
def test_a_threshold_between_two_neighbours_in_float32_is_below_none_of_them(options):
    """The mean of 1, 1, 1 and the next number above is nearest to 1, which three of them are below."""
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    scores = [1.0, 1.0, above, above] if options else [1.0, 1.0, 1.0, above]
    assert observed(scores, **options).plan(1).stats["eligible"] == scores.count(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fault_5_indices_above_2_to_the_24_survive_any_loss_dtype(dtype):
    pruner = InfoBatch(2**24 + 10, epochs=10)
    index = torch.tensor([2**24 + 1, 2**24 + 3])
    pruner.observe(index, torch.tensor([1.5, 2.5], dtype=dtype))
    assert torch.equal(pruner.seen.nonzero().squeeze(1), index)
    assert pruner.scores[index].tolist() == [1.5, 2.5]


def test_fault_6_observing_reads_nothing_back_from_the_device():
    """On the meta device every read of a value raises."""
    pruner = InfoBatch(100, epochs=10, device="meta")
    pruner.observe(torch.arange(8, device="meta"), torch.ones(8, device="meta", dtype=torch.bfloat16))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fault_7_a_loss_that_is_not_finite_keeps_its_sample_and_changes_no_other(bad):
    losses = exponential(100)
    clean = observed(losses[1:], prune_ratio=0.9).plan(1)
    losses[0] = bad
    plan = observed(losses, prune_ratio=0.9).plan(1)
    assert 0 in plan.indices
    assert plan.weights[plan.indices == 0] == 1
    assert plan.stats["nonfinite"] == 1
    assert plan.stats["eligible"] == clean.stats["eligible"]
    assert plan.stats["threshold"] == clean.stats["threshold"]


def test_fault_7_all_losses_nan_is_a_full_epoch_not_a_crash():
    plan = observed([math.nan] * 10).plan(1)
    assert plan.kept == 10
    assert plan.stats["nonfinite"] == 10


def test_fault_8_the_loss_is_not_changed_so_autograd_can_use_it():
    logits = torch.zeros(4, requires_grad=True)
    losses = logits.exp()  # its backward pass reads its own output
    pruner = InfoBatch(4, epochs=2)
    pruner.observe(torch.arange(4), losses)
    assert losses._version == 0
    assert not pruner.scores.requires_grad
    (losses * torch.full((4,), 2.0)).mean().backward()
    assert logits.grad.tolist() == [0.5] * 4


def test_fault_9_the_length_of_an_epoch_is_known_before_it_starts():
    pruner = observed(exponential(1000))
    for epoch in range(10):
        plan = pruner.plan(epoch)
        part = shard(plan, batch_size=64, rank=0, world=1)
        assert len(part) == math.ceil(plan.kept / 64) == len(list(part))


def test_fault_10_the_users_seed_decides():
    orders = {tuple(observed(exponential(50), seed=seed).plan(1).indices.tolist()) for seed in range(10)}
    assert len(orders) == 10


def test_fault_10_a_wrapped_subset_still_returns_images():
    images = torch.arange(1000.0, 1100.0)
    subset = Subset(TensorDataset(images), list(range(50, 100)))
    pruner = InfoBatch(len(subset), epochs=10)
    for epoch in range(3):
        for index, _ in pruner.plan(epoch).batches(8):
            x = torch.stack([subset[i][0] for i in index.tolist()])
            assert torch.equal(x, 1050.0 + index)
            pruner.observe(index, x)
    assert torch.equal(pruner.scores, images[50:])


def test_fault_11_a_nominal_ratio_is_not_a_saving():
    """Of log-normal losses, as in trained networks, r = .7 saves far less than .7."""
    pruner = observed(exponential(1000).mul(2).exp(), prune_ratio=0.7)
    plans = [pruner.plan(epoch) for epoch in range(10)]
    saved = 1 - sum(plan.kept_fraction for plan in plans) / 10
    assert saved < 0.5


def test_fault_12_a_plan_holds_no_python_list_of_samples():
    plan = observed(exponential(1000)).plan(1)
    assert Counter(type(value) for value in vars(plan).values()) == {torch.Tensor: 2, int: 1, dict: 1, str: 1}
    part = shard(plan, batch_size=10, rank=0, world=2)
    assert next(iter(part))[0].untyped_storage().data_ptr() == plan.indices.untyped_storage().data_ptr()


@pytest.mark.parametrize("options", [{}, {"threshold": "quantile"}, {"saving": 0.4}])
def test_fault_12_planning_takes_as_little_memory_as_the_plan(options):
    """A list of the kept samples alone takes 36 bytes for each of them, and a second one to shuffle."""
    pruner = observed(exponential(3_000_000), **options)
    tracemalloc.start()
    pruner.plan(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * 3_000_000


# --- settings and states that do not fit ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_ratio": 1.2}, "prune_ratio: 1.2 is not allowed; expected less than 1"),
        ({"prune_ratio": 0.5, "saving": 0.2}, r"prune_ratio \(0.5\) and saving \(0.2\) exclude one another"),
        ({"prune_ratio": None}, "both null; expected one of them"),
        ({"threshold": "quantile", "saving": 0.2}, "expected neither prune_ratio"),
        ({"threshold": "quantile", "keep": (0.5,)}, "differ in length"),
        ({"quantiles": (0.8, 0.2)}, "must rise"),
        (
            {"prune_ratio": 0.95},
            "prune_ratio: 0.95 is not allowed; expected at most 0.9, where a survivor weighs 10",
        ),
        (
            {"keep": (0.05, 0.5)},
            r"keep \(0.05, 0.5\) must be fractions from 0.1, where a survivor weighs 10, to 1",
        ),
        ({"prune_from": 1.5}, "prune_from: 1.5 is not allowed; expected less than or equal to 1"),
        ({"prune_from": 0.9}, r"prune_from: 0.9 is not allowed; expected at most anneal_from \(0.875\)"),
        (
            {"warmup_epochs": 5},
            r"warmup_epochs: 5 is said in progress now; expected prune_from: 5 / \(epochs",
        ),
        ({"prun_ratio": 0.5}, "did you mean 'prune_ratio'"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_message(options, message):
    with pytest.raises(UserError, match=message):
        InfoBatch(100, epochs=10, **options)


def test_the_warm_up_of_one_epoch_that_older_experiments_name_is_what_is_done_anyway():
    assert InfoBatchSettings(warmup_epochs=1) == InfoBatchSettings()


@pytest.mark.parametrize(
    ("index", "loss", "message"),
    [
        (torch.arange(4, dtype=torch.int32), torch.ones(4), "index is torch.int32; expected torch.int64"),
        (torch.arange(4.0), torch.ones(4), "index is torch.float32; expected torch.int64"),
        (
            torch.arange(4),
            torch.tensor(1.0),
            r"losses of shape \(\) for indices of shape \(4,\); expected one loss",
        ),
        (torch.arange(4), torch.ones(4, 2), r"losses of shape \(4, 2\) for indices of shape \(4,\)"),
        (torch.tensor(3), torch.tensor(1.0), r"losses of shape \(\) for indices of shape \(\)"),
    ],
)
def test_what_cannot_be_observed_is_reported_in_a_line(index, loss, message):
    pruner = InfoBatch(10, epochs=4)
    with pytest.raises(UserError, match=message):
        pruner.observe(index, loss)
    assert not pruner.seen.any()


def test_a_state_is_a_copy():
    pruner = observed(exponential(10))
    state = pruner.state_dict()
    pruner.observe(torch.arange(10), torch.zeros(10))
    assert state["scores"].min() > 0
