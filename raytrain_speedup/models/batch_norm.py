"""Batch normalisation over all workers: a step's statistics are those of its whole batch.

Left to itself, each worker of several normalises by the samples it has, which are fewer than one worker has, and
the step is another one. Here workers tell each other count, mean and variance in every layer's forward pass, and
two sums in its backward pass, so that their step is that of one worker with all of the samples, however unevenly
they are dealt out.

torch has this for GPUs (`nn.SyncBatchNorm`), whose kernels are used there; its layers take the place of a network's
own and refuse to be on a CPU. These layers stay the objects they are, with their hooks and the keys of their state
dict, and only their class becomes another (as in `dense.py`), so that checkpoints know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as TorchFunction
from torch.nn.modules.batchnorm import _BatchNorm

from raytrain_speedup.settings import UserError

KEY = "train.sync_batch_norm"

_uncounted = False


def share_statistics(model: nn.Module, workers: int) -> None:
    """Make the batch norms of a network take their statistics over all workers when it trains; in place.

    Args:
        workers: how many share a step; with one everything stays as it is, but is checked.

    Raises:
        UserError: if the network has no batch norm, one that is not known, or one that is asked about one image
            after another, and so on each worker another number of times.
    """
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    if not norms:
        raise UserError(f"{KEY}: {type(model).__name__} has no batch normalisation; expected false")
    alone = tuple(f"{part}." for part in getattr(model, "one_by_one", ()))
    for name, layer in norms.items():
        if alone and name.startswith(alone):
            raise UserError(
                f"{KEY}: {type(model).__name__} asks {name} about one image after another, and workers have "
                "different numbers of them; expected false, or another network"
            )
        if not _known(type(layer)):
            raise UserError(
                f"{KEY}: {name} is a {type(layer).__name__}, whose forward pass is its own; expected "
                "torch's or timm's batch normalisation, or false"
            )
    if workers > 1:
        for layer in norms.values():
            layer.__class__ = _sharing(type(layer))  # type: ignore[arg-type]
            layer.tracks = layer.track_running_stats  # type: ignore[assignment]


def own_statistics(model: nn.Module) -> None:
    """Undo `share_statistics`, for a copy that one worker steps alone; in place."""
    for layer in model.modules():
        if isinstance(layer, Sharing):
            layer.__class__ = type(layer).__bases__[1]


@contextmanager
def uncounted() -> Iterator[None]:
    """What a network is shown inside is no part of the step: others wait for this worker, which has no samples."""
    global _uncounted  # layers are deep in a network, and its forward pass knows only tensors
    _uncounted = True
    try:
        yield
    finally:
        _uncounted = False


def _known(kind: type[nn.Module]) -> bool:
    """Whether a layer's forward pass is torch's, or timm's with dropout and activation behind it."""
    return kind.__module__.startswith(("torch.nn.modules.", "timm.layers.norm_act", __package__ or ""))


class Sharing(_BatchNorm):
    """Before another class of batch norms: in training the statistics are those of all workers' samples.

    Attributes:
        tracks: `track_running_stats` in training; where it is another now, the network is used as a judge (in
            distillation), each worker's of its own images.
    """

    tracks: bool

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.track_running_stats != self.tracks:
            return super().forward(input)
        self._check_input_dim(input)
        out: Any = _normalised(self, input)
        for behind in ("drop", "act"):  # timm's layers that are both
            if (part := getattr(self, behind, None)) is not None:
                out = part(out)
        return out


@cache
def _sharing(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Sharing{kind.__name__}", (Sharing, kind), {})


@torch.compiler.disable  # a graph ends here, so that all workers' collectives come in one order, compiled or not
def _normalised(layer: Sharing, x: Tensor) -> Tensor:
    momentum = 0.0
    if layer.track_running_stats:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        momentum = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
    if not _uncounted:
        return _of_all(layer, x, momentum)
    none = _of_all(
        layer, x[:0].to(_wide(x)), momentum
    )  # in the graph, for the others wait in the backward pass
    statistics = layer.running_mean, layer.running_var
    if statistics[0] is None:
        statistics = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    own = F.batch_norm(x, *statistics, layer.weight, layer.bias, eps=layer.eps)
    return torch.cat([none.to(own.dtype), own])


def _of_all(layer: Sharing, x: Tensor, momentum: float) -> Tensor:
    own = x, layer.weight, layer.bias, layer.running_mean, layer.running_var
    if x.is_cuda:
        return TorchFunction.apply(*own, layer.eps, momentum, dist.group.WORLD, dist.get_world_size())
    return _Normalise.apply(*own, layer.eps, momentum)


class _Normalise(torch.autograd.Function):
    """What torch's function does on a GPU, in operations that every device has."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
    ) -> Tensor:
        mean, var, count = _statistics(x)
        if running_mean is not None and running_var is not None:
            unbiased = var * count / (count - 1).clamp(min=1)
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_(unbiased.to(running_var), momentum)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps) if len(x) else x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        dims = [axis for axis in range(x.dim()) if axis != 1]
        standard = (x - mean.view(shape)) * scale.view(shape)
        own = torch.stack([(given * standard).sum(dims), given.to(standard).sum(dims)])
        into = None
        if ctx.needs_input_grad[0]:
            total = own.clone()
            dist.all_reduce(total)
            along, level = (total / count).view(2, *shape)
            factor = scale if weight is None else scale * weight
            into = (factor.view(shape) * (given - level - standard * along)).to(x)
        return into, own[0] if weight is not None else None, own[1], None, None, None, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of the channels of all workers' (b, C, ...), and how many values each has."""
    channels, wide = x.shape[1], x.to(_wide(x))
    own = wide.new_zeros(2 * channels + 1)
    if len(x):
        var, mean = torch.var_mean(wide, [axis for axis in range(x.dim()) if axis != 1], correction=0)
        own = torch.cat([mean, var, own.new_tensor([x.numel() // channels])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.stack(parts).split([channels, channels, 1], 1)
    count = counts.sum().clamp(min=1)
    mean = (counts * means).sum(0) / count
    return mean, (counts * (variances + (means - mean).square())).sum(0) / count, count


def _wide(x: Tensor) -> torch.dtype:
    """Where sums are taken."""
    return torch.promote_types(x.dtype, torch.float32)
