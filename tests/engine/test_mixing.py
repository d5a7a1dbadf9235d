"""Mixed images keep pruning unbiased: partners weigh the same, and losses go to whom they belong."""

from __future__ import annotations

import pytest
import torch
from engine_runs import tiny
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.engine.mixing import Mix, mix_batch, partners

WEIGHTS = st.lists(st.sampled_from([1.0, 2.0, 4.0, 1.9999999]), min_size=1, max_size=40)


@given(WEIGHTS)
def test_partners_are_a_permutation_among_equal_weights(weights: list[float]):
    weight = torch.tensor(weights)
    partner = partners(weight)
    assert partner.sort().values.tolist() == list(range(len(weights)))
    assert torch.equal(weight[partner], weight)
    alone = torch.tensor([(weight == own).sum() == 1 for own in weight])
    assert torch.equal(partner == torch.arange(len(weights)), alone)


def test_scores_are_gathered_by_share_from_both_images():
    """Image 0 shows samples 0 and 2, image 1 samples 1 and 0, image 2 samples 2 and 1; a quarter is the partner."""
    mix = Mix(torch.tensor([2, 0, 1]), fraction=0.75)
    own, others = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    expected = [0.75 * 1 + 0.25 * 20, 0.75 * 2 + 0.25 * 30, 0.75 * 3 + 0.25 * 10]
    torch.testing.assert_close(mix.scores(own, others), torch.tensor(expected))


@given(st.integers(2, 20), st.floats(0, 1), st.integers(0, 1000))
def test_scores_sum_to_the_losses_of_the_images(count: int, fraction: float, seed: int):
    """Nothing of a loss is lost or counted twice."""
    random = torch.Generator().manual_seed(seed)
    own, others = torch.rand(2, count, generator=random, dtype=torch.float64)
    mix = Mix(partners(torch.ones(count)), fraction)
    images = fraction * own + (1 - fraction) * others
    torch.testing.assert_close(mix.scores(own, others).sum(), images.sum())


def numbered(count: int, side: int = 8) -> torch.Tensor:
    """Images whose every pixel is their number."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, side, side).contiguous()


def whole(inputs: torch.Tensor) -> Batch:
    """A batch of samples that weigh the same, of which each is its own target."""
    count = len(inputs)
    return {"inputs": inputs, "target": torch.arange(count), "weight": torch.ones(count)}


def test_mixup_blends_by_the_share():
    inputs = numbered(6)
    batch, mix = mix_batch(whole(inputs), tiny(mixup=1.0).train, key=(0, 0, 0))
    assert mix is not None
    mixed = batch["inputs"]
    expected = mix.fraction * inputs + (1 - mix.fraction) * inputs[mix.partner]
    torch.testing.assert_close(mixed, expected)


@given(st.integers(0, 500))
def test_the_share_of_cutmix_is_the_area_that_stays(step: int):
    inputs = numbered(6)
    batch, mix = mix_batch(whole(inputs), tiny_cutmix, key=(0, 0, step))
    assert mix is not None
    mixed = batch["inputs"]
    assert torch.equal(batch["mixed_target"], mix.partner) and (batch["fraction"] == mix.fraction).all()
    for image in range(6):
        assert set(mixed[image].unique().tolist()) <= {float(image), float(mix.partner[image])}
        assert (mixed[image] == image).float().mean().item() == pytest.approx(mix.fraction)


tiny_cutmix = tiny(cutmix=1.0).train


def test_the_switch_is_the_share_of_cutmix_batches_and_the_key_decides():
    train = tiny(mixup=0.5, cutmix=1.0, mix_switch=0.3).train
    inputs = numbered(4)

    def is_cut(step: int) -> bool:
        mixed = mix_batch(whole(inputs), train, key=(1, 2, step))[0]["inputs"]
        return bool((mixed == mixed.round()).all())

    cut = [is_cut(step) for step in range(400)]
    assert sum(cut) / 400 == pytest.approx(0.3, abs=0.08)
    assert cut == [is_cut(step) for step in range(400)]


def test_off_or_alone_is_unmixed():
    for inputs, train in ((numbered(4), tiny().train), (numbered(1), tiny(mixup=1.0).train)):
        mixed, mix = mix_batch(batch := whole(inputs), train, key=(0, 0, 0))
        assert mixed is batch
        assert mix is None
