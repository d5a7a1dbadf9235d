"""Randomness as a function of counters: draws for (seed, rank, call) depend on nothing drawn before.

A run that resumes, or that another number of workers takes up, draws the same numbers without any generator
state in its checkpoint, and torch's global generator is never touched.
"""

from __future__ import annotations

import hashlib
import struct

import torch

INITIALISE, RESET, LATENT, AUGMENT, SAMPLE, ORDER, EVALUATE = range(7)
"""What a number is drawn for: the first counter of a key, so that no two purposes share a stream."""


def generator_for(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on `device` that is seeded by a hash of the integers in `key`."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
