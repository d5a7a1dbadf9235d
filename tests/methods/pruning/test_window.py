"""An epoch in windows shows what was planned, once, with its weights, and reads close to each other."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup.methods.pruning import InfoBatch
from raytrain_speedup.methods.pruning.base import EpochPlan
from raytrain_speedup.methods.pruning.shard import shard
from raytrain_speedup.methods.pruning.window import WindowedPruner, in_windows


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 400), st.integers(1, 5), st.integers(0, 9))
def test_every_planned_sample_is_shown_once_with_its_weight(
    samples: int, stretches: int, window: int, world: int, epoch: int
) -> None:
    random = np.random.default_rng(samples)
    kept = np.sort(random.permutation(samples)[: random.integers(1, samples + 1)])
    indices = torch.from_numpy(random.permutation(kept))
    plan = EpochPlan(indices, 1 + indices.float(), samples)
    found = in_windows(plan, random.integers(0, stretches, samples), window, seed=1, epoch=epoch)
    assert sorted(found.indices.tolist()) == kept.tolist()
    assert torch.equal(found.weights, 1 + found.indices.float())
    shares = [shard(found, batch_size=7, rank=rank, world=world) for rank in range(world)]
    assert sorted(i for share in shares for index, _ in share for i in index.tolist()) == kept.tolist()


def test_reads_are_within_a_window_and_batches_see_many_stretches() -> None:
    samples, length, window = 20_000, 100, 1000
    stretch_N = np.arange(samples) // length
    plan = WindowedPruner(InfoBatch(samples, 4), stretch_N, window).plan(0)
    shown = stretch_N[plan.indices.numpy()]
    first, last = np.full(200, samples), np.zeros(200, dtype=int)
    np.minimum.at(first, shown, np.arange(samples))
    np.maximum.at(last, shown, np.arange(samples))
    assert (last - first).max() < 2 * window, "a stretch is read once, and then over"
    batches = shown[: samples // 50 * 50].reshape(-1, 50)
    assert np.mean([len(set(batch.tolist())) for batch in batches]) > 8
    assert len(set(np.diff(np.sort(first)).tolist())) > 1


def test_every_epoch_has_another_order_and_each_its_own() -> None:
    stretch_N = np.arange(2000) // 10
    pruner = WindowedPruner(InfoBatch(2000, 4, seed=3), stretch_N, 50)
    again = WindowedPruner(InfoBatch(2000, 4, seed=3), stretch_N, 50)
    assert torch.equal(pruner.plan(1).indices, again.plan(1).indices)
    assert not torch.equal(pruner.plan(1).indices, pruner.plan(2).indices)
    first = [list(dict.fromkeys((pruner.plan(e).indices // 100).tolist())) for e in (0, 1)]
    assert first[0] != first[1], "the stretches come in another order too"
    pruner.observe(torch.arange(2000), torch.rand(2000))
    again.load_state_dict(pruner.state_dict())
    assert torch.equal(pruner.plan(1).weights, again.plan(1).weights)
