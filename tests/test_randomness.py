"""Random numbers are a pure function of counters, look uniform and independent, leave the global generator alone,
and are those by which earlier runs go on."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_speedup import randomness
from raytrain_speedup.methods.pruning.draw import SURVIVORS, generator

SEEDS = st.integers(0, 2**63 - 1)


def splitmix64(state: int) -> int:
    """One output of the published generator, in plain integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_mixing_function_is_that_of_splitmix64() -> None:
    # the first output of the reference implementation for seed 1234567
    assert splitmix64(1234567) == 6457827717110365317
    index = torch.tensor([0, 1, 2, 77, 14_197_121])
    found = randomness.bits(index, seed=3, epoch=5, streams=[9])[0].tolist()
    start = randomness.key(3, 5, 9)
    gamma = 0x9E3779B97F4A7C15
    assert found == [splitmix64((start + (i - 1) * gamma) % 2**64) >> 32 for i in index.tolist()]


@given(seed=SEEDS, epoch=st.integers(0, 10**6), stream=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_bits_look_uniform(seed: int, epoch: int, stream: int) -> None:
    bits = randomness.bits(torch.arange(20_000), seed=seed, epoch=epoch, streams=[stream])[0]
    assert bits.min() >= 0 and bits.max() < 2**32
    counts = torch.bincount(randomness.below(bits, 16), minlength=16).double()
    chi_square = ((counts - 1250) ** 2 / 1250).sum()
    assert chi_square < 75  # 15 degrees of freedom: exceeded once in 10^9
    neighbours = torch.corrcoef(torch.stack([bits[:-1].double(), bits[1:].double()]))[0, 1]
    assert neighbours.abs() < 0.045  # 6 standard errors


@given(seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_seeds_epochs_and_streams_are_independent(seed: int, epoch: int) -> None:
    index = torch.arange(20_000)
    rows = [
        *randomness.bits(index, seed=seed, epoch=epoch, streams=[0, 1]),
        randomness.bits(index, seed=seed, epoch=epoch + 1, streams=[0])[0],
        randomness.bits(index, seed=seed + 1, epoch=epoch, streams=[0])[0],
    ]
    correlation = torch.corrcoef(torch.stack(rows).double()) - torch.eye(4)
    assert correlation.abs().max() < 0.045


@given(st.integers(1, 2**31 - 1))
def test_below_reaches_both_ends_and_no_further(bound: int) -> None:
    ends = torch.tensor([0, 2**32 - 1])
    assert randomness.below(ends, bound).tolist() == [0, bound - 1]


def test_unit_is_exact_and_below_one() -> None:
    assert randomness.unit(torch.tensor([0, 2**31, 2**32 - 1])).tolist() == [0.0, 0.5, 1 - 2**-24]


def test_a_sample_draws_the_same_in_any_batch() -> None:
    index = torch.arange(100)
    whole = randomness.bits(index, seed=1, epoch=2, streams=[0, 4])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(randomness.bits(index[order], seed=1, epoch=2, streams=[0, 4]), whole[:, order])
    assert torch.equal(randomness.bits(index[7:9], seed=1, epoch=2, streams=[4]), whole[1:, 7:9])


def test_one_sample_draws_what_it_draws_in_a_batch() -> None:
    for index in (0, 7, 2**40):
        alone = randomness.bits_of_one(index, seed=1, epoch=2, streams=range(9))
        batch = randomness.bits(torch.tensor([index]), seed=1, epoch=2, streams=range(9))
        assert alone == batch[:, 0].tolist()


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state()
    randomness.bits(torch.arange(10), seed=0, epoch=0, streams=range(20))
    randomness.torch_generator("cpu", 3, 2)
    randomness.numpy_generator(3, 2).random()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_are_those_of_earlier_runs() -> None:
    """Or a run that is resumed would go on with others, and equal seeds would no longer be comparable. NumPy's are
    spelt out with what it documents."""
    index = torch.tensor([0, 14_197_121])
    words = randomness.words(index, seed=3, epoch=5, streams=[9])
    assert words.tolist() == [[4510538239897710207, -7787647319344757359]]
    drawn = torch.randint(1000, (4,), generator=randomness.torch_generator("cpu", 3, 2, 9))
    assert drawn.tolist() == [200, 946, 76, 70]
    survivors = generator(3, 5, SURVIVORS).bit_generator.random_raw(2)
    assert survivors.tolist() == [8816289681961101031, 10726669464752324208]
    replayed = np.random.Generator(np.random.Philox(key=7, counter=[0, 0, 11, 5])).integers(1000, size=4)
    assert randomness.philox((7, 0), (11, 5)).integers(1000, size=4).tolist() == replayed.tolist()
    mixed = np.random.Philox(np.random.SeedSequence((3, 5, 9))).random_raw(2)
    assert randomness.numpy_generator(3, 5, 9).bit_generator.random_raw(2).tolist() == mixed.tolist()
    assert randomness.seeds(2, 3, 5, 9) == [6042517418539319567, 12031947678540651835]


def test_no_two_keys_or_counters_share_a_generator() -> None:
    """As many different generators as different arguments, a negative seed included."""
    arguments = [((seed, epoch), (0, stream)) for seed in (-1, 0, 3) for epoch in (0, 3) for stream in (0, 1)]
    first = {int(randomness.philox(*each).bit_generator.random_raw()) for each in arguments}
    assert len(first) == len(arguments)
    keys = [(0,), (0, 1), (1, 0), (0, 1, 2)]
    hashed = {randomness.torch_generator("cpu", *key).initial_seed() for key in keys}
    assert len(hashed) == len(keys)
