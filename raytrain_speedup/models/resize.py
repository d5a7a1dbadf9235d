"""Changing the image size of a model in mid-run: its position tables, their optimizer moments and its EMA.

EfficientTrain (Wang et al. 2023, https://arxiv.org/abs/2211.09703) starts on small images and ends on full
ones. Convolutions do not care, but a ViT has one row of its position table per patch, and a Swin one row of
each bias table per offset within a window whose side is 1/32 of the image. At a change of size these tables
are resized bilinearly, and with them whatever the optimizer and the EMA keep in the same shape.

    change_size(model, 160, optimizer=optimizer, ema=ema)

The `nn.Parameter` objects stay; only their contents change. So parameter groups, per-parameter state and
lists of parameters held elsewhere remain right. `DistributedDataParallel` alone fixes its buckets by shape:
pass the bare module and wrap it again afterwards. Under `torch.compile` the next step compiles for the new
shapes. A checkpoint of a stage holds tables of its size: change the size first, then load it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITION_TABLES = ("pos_embed", "relative_position_bias_table")
"""Names of the parameters that hold one row per point of a square grid."""


def resize_rows(rows: Tensor, new_count: int, *, prefix: int = 0) -> Tensor:
    """Resize a table of one row per point of a square grid, bilinearly and with centres aligned.

    Args:
        rows: (prefix + side^2, C), the grid in row-major order.
        new_count: rows of the result, prefix + new_side^2.
        prefix: leading rows that belong to no point (class tokens); they stay as they are.

    Returns:
        (new_count, C) of the same dtype; a copy of `rows` if the count is the same.

    Raises:
        ValueError: if either grid is not square.
    """
    side, new_side = math.isqrt(len(rows) - prefix), math.isqrt(new_count - prefix)
    if side**2 != len(rows) - prefix or new_side**2 != new_count - prefix:
        raise ValueError(f"{len(rows)} to {new_count} rows with a prefix of {prefix}: a grid is not square")
    if side == new_side:
        return rows.clone()
    grid = rows[prefix:].T.reshape(1, -1, side, side).to(torch.promote_types(rows.dtype, torch.float32))
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bilinear", align_corners=False)
    return torch.cat([rows[:prefix], grid.reshape(-1, new_side**2).T.to(rows.dtype)])


def resize_table(table: Tensor, shape: torch.Size, *, prefix: int = 0) -> Tensor:
    """`resize_rows` for a table with leading axes of 1, as a ViT's (1, rows, C), to `shape`."""
    return resize_rows(table.reshape(table.shape[-2:]), shape[-2], prefix=prefix).reshape(shape)


def change_size(
    model: nn.Module,
    size: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
) -> None:
    """Make `model` take images of `size` x `size`, in place; the size it has already changes nothing.

    Gradients of resized parameters are dropped: call it between steps.

    Args:
        model: the bare module (no DDP wrapper).
        size: the new side in pixels.
        optimizer: its state tensors of a resized parameter's shape (moments) are resized alike.
        ema: a second module of the same architecture, resized alike.

    Raises:
        ValueError: if a table of the model can't be resized; `models.check_sizes` finds out before the run.
    """
    if size_of(model) in (None, size):
        return
    for name, old, shape in _follow(model, size):
        prefix = prefix_of(model, name)
        state = {} if optimizer is None else optimizer.state.get(old, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old.shape:
                state[key] = resize_table(value, shape, prefix=prefix)
        _set_contents(old, resize_table(old.detach(), shape, prefix=prefix))
    if ema is not None:
        change_size(ema, size)


@contextmanager
def at_size(model: nn.Module, size: int) -> Iterator[nn.Module]:
    """The model at another size for the length of a `with`; afterwards its tables are exactly as before.

    For an evaluation at full size in mid-curriculum: resizing up and down again would blur the tables.
    """
    before = size_of(model)
    if before in (None, size):
        yield model
        return
    contents = {name: parameter.data for name, parameter in position_tables(model).items()}
    change_size(model, size)
    try:
        yield model
    finally:
        change_size(model, before)
        for name, parameter in position_tables(model).items():
            parameter.data = contents[name]


def size_of(model: nn.Module) -> int | None:
    """The side in pixels that a timm model is made for, or None if nothing in the model depends on it."""
    if not hasattr(model, "set_input_size"):
        return None
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return size and size[0]


def position_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that hold a row per point of a square grid, by their names in the model."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in POSITION_TABLES
    }


def prefix_of(model: nn.Module, name: str) -> int:
    """Rows of the table before its grid: the class and register tokens that have a position of their own."""
    owner, _, table = name.rpartition(".")
    transformer = model.get_submodule(owner)
    if table != "pos_embed" or getattr(transformer, "no_embed_class", False):
        return 0
    return getattr(transformer, "num_prefix_tokens", 0)


def _follow(model: Any, size: int) -> list[tuple[str, nn.Parameter, torch.Size]]:
    """Let timm rebuild windows, masks and indices; keep the old parameters and say what shape each must have.

    timm puts new, bicubically resized parameters in place of the tables; the old ones, which the optimizer
    knows, go back with their contents as they were.
    """
    before = dict(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about the interpolation whose result goes unused
        model.set_input_size(img_size=(size, size))
    replaced = []
    for name, new in list(model.named_parameters()):
        if new is not before[name]:
            if name.rpartition(".")[2] not in POSITION_TABLES:
                raise ValueError(f"{name} changes with the image size, and how to resize it is not known")
            replaced.append((name, before[name], new.shape))
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, before[name])
    return replaced


def _set_contents(parameter: nn.Parameter, contents: Tensor) -> None:
    """Give a parameter contents of another shape.

    A loss of the last step that someone still holds keeps alive the node that adds up this parameter's
    gradient, and that node expects the old shape. It is made afresh only when dtype or device changes, so the
    contents pass through another dtype.
    """
    parameter.grad = None
    dtype = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=dtype, device=parameter.device)
    parameter.data = contents
