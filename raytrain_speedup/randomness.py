"""Every random number of a run as a function of counters: nothing is drawn that depends on what was drawn before.

What an epoch does to a sample then depends neither on its batch nor on the worker that reads it, nor on where a run
was interrupted; a run goes on without any generator's state in its checkpoint; and no global generator is touched.
There are three of a kind, for who has to draw:

- `bits`: 32 random bits for each sample of a batch, on any device. The mixing function is that of splitmix64
  (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), on int64 tensors, whose
  products wrap on every device.
- `philox`, `numpy_generator`: for NumPy's distributions, on Philox (Salmon et al., "Parallel Random Numbers: As
  Easy as 1, 2, 3", SC 2011): at given counters, or keyed by a hash of any integers.
- `torch_generator`: for torch's, on a device, seeded by a hash of any integers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_WORD = 1 << 64
_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
BITS = 32
RANGE = 1 << BITS
"""Random bits are whole numbers in [0, RANGE)."""


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value


def _mix(value: int) -> int:
    value %= _WORD
    value = (value ^ (value >> 30)) * _MIX1 % _WORD
    value = (value ^ (value >> 27)) * _MIX2 % _WORD
    return value ^ (value >> 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """Logical right shift; torch's own copies the sign."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def key(seed: int, epoch: int, stream: int) -> int:
    """The 64-bit key of one stream of one epoch, signed."""
    return _signed(_mix(_mix(_mix(seed + _GAMMA) + epoch + _GAMMA) + stream + _GAMMA))


@lru_cache(maxsize=64)
def _keys(seed: int, epoch: int, streams: tuple[int, ...], device: torch.device) -> Tensor:
    """Cached, so that a step sends nothing to the device."""
    return torch.tensor([key(seed, epoch, stream) for stream in streams], dtype=torch.int64, device=device)


def words(index: Tensor, *, seed: int, epoch: int, streams: Sequence[int]) -> Tensor:
    """64 random bits for every sample and stream, (len(streams), *index.shape) int64: keys for more of them."""
    keys_S = _keys(seed, epoch, tuple(streams), index.device)
    x = keys_S.view(-1, *[1] * index.dim()) + index * _signed(_GAMMA)
    x = (x ^ _shifted(x, 30)) * _signed(_MIX1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX2)
    return x ^ _shifted(x, 31)


def bits(index: Tensor, *, seed: int, epoch: int, streams: Sequence[int]) -> Tensor:
    """32 random bits for every sample and stream: (len(streams), *index.shape) int64 in [0, 2^32)."""
    return _shifted(words(index, seed=seed, epoch=epoch, streams=streams), 64 - BITS)


def bits_of_one(index: int, *, seed: int, epoch: int, streams: Sequence[int]) -> list[int]:
    """The same bits of a single sample, without the cost of a tensor."""
    return [_mix(key(seed, epoch, stream) + index * _GAMMA) >> (64 - BITS) for stream in streams]


def below(random: Tensor, bound: int | Tensor) -> Tensor:
    """Integers in [0, bound) from `bits`, without rounding; bound below 2^31."""
    return (random * bound) >> BITS


def unit(random: Tensor) -> Tensor:
    """float32 in [0, 1) from `bits`: 24 of them, so that every value is exact."""
    return (random >> (BITS - 24)).to(torch.float32) * 2.0**-24


def philox(key: tuple[int, int], counter: tuple[int, int] = (0, 0)) -> np.random.Generator:
    """NumPy's generator of one kind of draw; two keys or counters never share a number.

    Args:
        key: two words, such as (seed, epoch); the first may be negative.
        counter: two words, such as (0, what is drawn).
    """
    words = np.array([key[0] % _WORD, key[1]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=[0, 0, *counter]))


def numpy_generator(*key: int) -> np.random.Generator:
    """NumPy's generator for a hash of the integers in `key`, none of them negative."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def seeds(count: int, *key: int) -> list[int]:
    """Whole numbers of 64 bits, to seed generators of others' with: a hash of the integers in `key`."""
    return np.random.SeedSequence(key).generate_state(count, np.uint64).tolist()


INITIALISE, RESET, LATENT, AUGMENT, SAMPLE, ORDER, EVALUATE = range(7)
"""What distillation draws for: the first integer of its keys, so that no two purposes share a stream."""


def torch_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on `device` that is seeded by a hash of the integers in `key`."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
