"""Notices a synthesis that failed: losses that are not finite, and images that show nothing.

A student agrees perfectly with what its teacher makes of a constant image, so such a run would end as the best of
its sweep. It is looked at once a call, where the device is waited for anyway (the seconds of synthesis end there),
by all workers together; no step inside a call waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_speedup.engine.alarm import NonFinite
from raytrain_speedup.methods.distillation import Synthesis, Synthesizer
from raytrain_speedup.methods.distillation.workers import average


class NothingShown(NonFinite):
    """Images without content, as those of a generator with infinite weights are."""


def check_call(call: int, synthesizer: Synthesizer, made: Synthesis) -> dict[str, float]:
    """The losses of a call by name, averaged over the workers, who all raise if one has to.

    Args:
        call: its number, from 0.
        synthesizer: as the call left it.
        made: what the call gave.

    Raises:
        NonFinite: naming the call and its terms, or what the synthesizer has learnt.
        NothingShown: if every image is of one colour, or all are the same.
    """
    signs = {**made.metrics, **_signs(made.images), "learnt": _largest(synthesizer.state_dict(), made.images)}
    (shared,) = average([torch.stack([sign.float() for sign in signs.values()])])
    found = dict(zip(signs, shared.tolist(), strict=True))  # what is not finite anywhere is not finite here
    losses = {name: found[name] for name in made.metrics}
    if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
        terms = ", ".join(name for name in bad if name != "loss")
        raise NonFinite(f"the synthesis loss is not finite in call {call} ({terms})")
    if not math.isfinite(found["learnt"]):
        raise NonFinite(f"what the synthesizer has learnt is not finite after call {call}")
    for sign, what in (("flat", "are each of one colour"), ("alike", "are all the same")):
        if found[sign]:
            raise NothingShown(f"the images of call {call} {what}; a student learns nothing from them")
    return losses


def _signs(images: Tensor) -> dict[str, Tensor]:
    """Whether every image (B, C, H, W) is of one colour, and whether all are the same."""
    pixels = images.flatten(2)
    return {
        "flat": (pixels == pixels[:, :, :1]).all(),
        "alike": (images == images[:1]).all(),
    }


def _largest(state: Mapping[str, Any], like: Tensor) -> Tensor:
    """The largest magnitude in a state; NaN if there is one."""
    numbers = [tensor for tensor in _tensors(state) if tensor.is_floating_point() and tensor.numel()]
    if not numbers:
        return torch.zeros((), device=like.device)
    return nn.utils.get_total_norm(numbers, norm_type=torch.inf)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested dicts and sequences."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for inner in tree.values():
            yield from _tensors(inner)
    elif isinstance(tree, list | tuple):
        for inner in tree:
            yield from _tensors(inner)
