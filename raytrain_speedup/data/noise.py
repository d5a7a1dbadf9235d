"""Randomness without a generator: random bits as a pure function of (seed, epoch, sample, stream).

What an epoch does to a sample then depends neither on its batch nor on the worker that reads it, nor on
where a run was interrupted; and no global generator is touched. The mixing function is that of splitmix64
(Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), on int64 tensors,
whose products wrap on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
