"""The validation split: balanced, disjoint, complete, and a function of labels and seed alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup import randomness
from raytrain_speedup.data import open_data
from raytrain_speedup.data.digits import DigitsSettings
from raytrain_speedup.data.splits import balanced_split

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(np.array)


@given(targets=LABELS, fraction=st.floats(0, 0.95), seed=st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_every_sample_is_on_one_side_and_every_class_gives_its_share(targets, fraction, seed) -> None:
    stay, aside = balanced_split(targets, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([stay, aside])), np.arange(len(targets)))
    counts, given_up = np.bincount(targets, minlength=7), np.bincount(targets[aside], minlength=7)
    assert (np.abs(given_up - fraction * counts) < 1 + 1e-9).all()
    assert (given_up[counts > 0] < counts[counts > 0]).all()
    if (counts[counts > 0] > 1 / (1 - fraction) + 1).all():
        assert len(aside) == round(fraction * len(targets))


@given(targets=LABELS, seed=st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_of_every_class_those_go_that_chance_puts_first(targets, seed) -> None:
    """A split is the same in every version: runs of old are resumed and compared."""
    _, aside = balanced_split(targets, 0.4, seed)
    random = randomness.bits(torch.arange(len(targets)), seed=seed, epoch=0, streams=[0])[0].tolist()
    expected = []
    for label in set(targets.tolist()):
        own = sorted(np.flatnonzero(targets == label).tolist(), key=lambda position: random[position])
        expected += own[: np.count_nonzero(targets[aside] == label)]
    assert aside.tolist() == sorted(expected)


def test_the_largest_remainders_are_rounded_up() -> None:
    """1.3, 1.9 and 0.8 of a tenth sum to 4."""
    targets = np.repeat([0, 1, 2], [13, 19, 8])
    assert np.bincount(targets[balanced_split(targets, 0.1, 0)[1]]).tolist() == [1, 2, 1]


def test_the_seed_chooses_the_samples_evenly() -> None:
    targets = np.arange(200) % 4
    chosen = np.zeros(200)
    for seed in range(400):
        chosen[balanced_split(targets, 0.25, seed)[1]] += 1
    # binomial(400, 1/4): std 8.7
    assert np.abs(chosen - 100).max() < 45
    assert not np.array_equal(balanced_split(targets, 0.25, 0)[1], balanced_split(targets, 0.25, 1)[1])


def test_the_split_stays_the_same_for_every_training_seed() -> None:
    first, second = (open_data(DigitsSettings(), seed=seed) for seed in (0, 1))
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.val.positions, second.val.positions)


def test_split_seed_null_follows_the_training_seed() -> None:
    first, second = (open_data(DigitsSettings(split_seed=None), seed=seed) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint
    assert not np.array_equal(first.val.positions, second.val.positions)
    other = open_data(DigitsSettings(split_seed=1), seed=5)
    assert other.fingerprint == second.fingerprint
