"""Every random decision of a plan: which samples are drawn, and in which order the kept ones come.

Randomness is counter-based, keyed by (seed, epoch): any worker can compute any epoch's draws at any time, and
nothing is carried along. Each kind of draw has a stream of its own, so an unpruned epoch has the same order under
every method: comparisons between methods are paired.

The order is one in-place sort of random words that carry the sample in their low bits. For N = 14,197,122 on
one core with AVX-512 that took .16 s, against .85 s for `Generator.permutation`, .46 s for `torch.randperm`,
.35 s for a 256-bucket scatter with a shuffle in each bucket, and .35 s for torch's radix sort of 32-bit keys
(tests/benchmarks/results/cpu-planning.md): those miss the cache once per sample or need a second array of N
positions. A keyed bijection (Feistel) is about as fast, but only pseudo-uniform. The weight rides along in the
low bits too, which saves a random gather after the shuffle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytrain_speedup.methods.pruning.base import EpochPlan
from raytrain_speedup.randomness import philox

ORDER, SURVIVORS, TIES, WINDOW = range(4)
"""Streams: the order of the epoch, who survives the pruning, who is eligible among equal scores, the order of an
epoch in windows."""

DROPPED, FULL = 0, 1
"""Codes of a sample in an epoch: not shown; shown at weight 1. Higher codes are bands of other weights."""

_CHUNK = 1 << 20  # samples laid out at a time, so that temporaries stay in the cache


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The generator of one kind of draw in one epoch: a function of its arguments alone."""
    return philox((seed, epoch), (0, stream))


def draw(among: NDArray[np.bool_], count: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """A uniformly random subset of exactly `count` of the samples marked in `among` (N,), as a mask (N,).

    Every sample gets a 16-bit key and the `count` smallest are drawn; among those that share the largest
    drawn key (some N / 65,536) the missing ones are chosen. By symmetry every subset is equally likely.
    """
    if count == np.count_nonzero(among):
        return among.copy()
    if count == 0:
        return np.zeros_like(among)
    n = len(among)
    keys = random.bit_generator.random_raw(-(-n // 4)).view(np.uint16)[:n]  # four of 16 bits in a word
    smallest = (~among).astype(np.uint16)
    smallest *= 2**16 - 1  # the others go last; `keys[among]` would take 6 times as long
    smallest |= keys
    smallest.partition(count - 1)
    last = smallest[count - 1]
    drawn = (keys < last) & among
    tied = np.flatnonzero((keys == last) & among)
    missing = count - np.count_nonzero(drawn)
    drawn[random.choice(tied, missing, replace=False, shuffle=False)] = True
    return drawn


def shuffled_plan(
    num_samples: int,
    codes: NDArray[np.uint8] | None,
    weights: Sequence[float],
    random: np.random.Generator,
    stats: Mapping[str, float],
) -> EpochPlan:
    """Shuffle the samples that are shown into a plan.

    Args:
        num_samples: N.
        codes: (N,) `DROPPED`, `FULL` or a band; None shows every sample at weight 1.
        weights: the weight of each code.
        random: the generator of the order.
        stats: handed through to the plan.

    The order is uniform but for samples whose random bits coincide, which stay in the order of their indices
    (38 bits for 14.2 million samples: 1 sample in 20,000).
    """
    code_bits = 0 if codes is None else (len(weights) - 1).bit_length()
    low = np.uint64((1 << ((num_samples - 1).bit_length() + code_bits)) - 1)
    shown = num_samples if codes is None else int(np.count_nonzero(codes))
    words = random.bit_generator.random_raw(shown)  # (M,) uint64: random bits | sample | code
    filled = 0
    for start in range(0, num_samples, _CHUNK):
        if codes is None:
            samples = np.arange(start, min(start + _CHUNK, num_samples), dtype=np.uint64)
        else:
            part = codes[start : start + _CHUNK]
            kept = np.flatnonzero(part)  # (m,), m of the chunk's samples are shown
            samples = (kept + start).astype(np.uint64) << np.uint64(code_bits) | part[kept]
        block = words[filled : filled + len(samples)]
        block &= ~low
        block |= samples
        filled += len(samples)
    words.sort()

    words &= low  # (M,) sample | code, in the epoch's order
    if codes is None:
        weight = torch.ones(1).expand(shown)  # one number in memory
    else:
        weight = _strip_weights(words, code_bits, np.asarray(weights, dtype=np.float32))
    return EpochPlan(torch.from_numpy(words.view(np.int64)), weight, num_samples, stats)


def _strip_weights(words: NDArray[np.uint64], code_bits: int, table: NDArray[np.float32]) -> Tensor:
    """Take the codes off the words (M,), in place, and return the weights (M,) they stand for."""
    weight = np.empty(len(words), dtype=np.float32)
    mask = np.uint64((1 << code_bits) - 1)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        weight[start : start + _CHUNK] = table[(part & mask).view(np.int64)]
        part >>= np.uint64(code_bits)
    return torch.from_numpy(weight)
