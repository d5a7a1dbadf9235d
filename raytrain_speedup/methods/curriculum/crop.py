"""Reducing an image to the B x B pixels that carry its low frequencies.

EfficientTrain (Wang et al., ICCV 2023, https://arxiv.org/abs/2211.09703) crops the centre of the shifted
spectrum: FFT, keep B x B of N x N, inverse FFT, times (B/N)^2, real part. That operation is linear and
separable, so it needs no FFT. With

    R[m, n] = 1/N sum_k cos 2 pi k (m/B - n/N),  k = -floor(B/2) .. ceil(B/2) - 1
    u[m] = (-1)^m / N,  v[n] = sin(pi n B/N)     (absent for odd B, whose band is symmetric)

the crop of X is exactly  R X R' - u (v' X v) u'.  The last term is what the lone Nyquist frequency of an
even band adds: one checkerboard for all images, times one number per image. The public implementation floors
an odd B to an even one; here the B frequencies around zero are kept for every B and every N.

Kernels (all of them are two small dense products):
    fourier  the crop above. It samples from pixel corners, so the content moves by (N/B - 1)/2 pixels against
             a centred resize, and it does not commute with a flip: flip first, as `crop_batch` does.
    aligned  the same band sampled at half-pixel centres; commutes with flips.
    resize   Lanczos-3 with anti-aliasing (Pillow's filter), what EfficientTrain++ does in its loader.

Where the time goes (tests/benchmarks/crop.py): the rows come first, as a batched product on the images where
they lie (a tenth faster than columns first); the columns are then one product on what is left. Every kernel
is symmetric under a reflection, so on a CPU the rows are folded into even and odd parts, which takes half the
multiplications, and the images go through in pieces that stay in the cache. A GPU takes all images at once
and does not fold: its products are cheap and its launches are not.
Tried and left out: folding the columns too. It saves a tenth at 160, nothing at 96, and needs a second way to
flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytrain_speedup.methods.curriculum.base import Kernel

LANCZOS_LOBES = 3
# Of float images in flight per thread: larger pieces leave the cache, smaller ones only add barriers.
CACHE_BYTES = 4 << 20


def low_frequency_crop(x: Tensor, size: int | tuple[int, int], kernel: Kernel = "fourier") -> Tensor:
    """Reduce (..., H, W) to (..., B_h, B_w). A constant image keeps its value; differentiable.

    Args:
        x: float tensor. Half-precision input is computed in float32; the result has the type and, where it is
            a batch, the memory format of the input.
        size: B for a square, or (B_h, B_w). The input itself is returned where nothing is to be reduced.
        kernel: `fourier`, `aligned` or `resize`; see the module.

    Raises:
        ValueError: if the result would be larger than the input, or empty.
    """
    height, width = _target(x, size)
    if (height, width) == tuple(x.shape[-2:]):
        return x
    out = _crop(x.reshape(-1, 1, *x.shape[-2:]), height, width, kernel)
    out = out.view(*x.shape[:-2], height, width).to(x.dtype)
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return out.contiguous(memory_format=torch.channels_last)
    return out


def crop_batch(
    images: Tensor,
    size: int | tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flip: Tensor | None = None,
    kernel: Kernel = "fourier",
) -> Tensor:
    """Flip, reduce and normalise a batch: uint8 in, float32 out, on the device of the images.

    The flip costs nothing, being a choice between two column matrices. The normalisation comes last: the crop
    keeps constants, so the two commute, and there are (N/B)^2 times fewer pixels after it.

    Args:
        images: (b, C, H, W) uint8.
        size: B for a square, or (B_h, B_w).
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        flip: (b,) bool, the images to flip left to right; None for none of them.
        kernel: `fourier`, `aligned` or `resize`; see the module.

    Raises:
        ValueError: if the result would be larger than the input, or empty.
    """
    height, width = _target(images, size)
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    if (height, width) == tuple(images.shape[-2:]):
        if flip is not None:
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        return torch.addcmul(shift, images, scale)
    return _crop(images, height, width, kernel, flip, (scale, shift))


def _target(x: Tensor, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if not (1 <= height <= x.shape[-2] and 1 <= width <= x.shape[-1]):
        raise ValueError(
            f"cannot reduce {x.shape[-2]} x {x.shape[-1]} pixels to {height} x {width}; "
            "expected a size from 1 to that of the images, which are never enlarged"
        )
    return height, width


def _crop(
    x_MCHW: Tensor,
    height: int,
    width: int,
    kernel: Kernel,
    flip: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The crop of all images: at once, or on a CPU that keeps no graph, in pieces that fit the cache."""
    dtype = torch.float64 if x_MCHW.dtype == torch.float64 else torch.float32
    rows = _axis(x_MCHW.shape[-2], height, kernel, x_MCHW.device, dtype)
    columns = _axis(x_MCHW.shape[-1], width, kernel, x_MCHW.device, dtype)
    keeps_graph = x_MCHW.requires_grad and torch.is_grad_enabled()
    if keeps_graph or x_MCHW.device.type != "cpu":
        with torch.autocast(x_MCHW.device.type, enabled=False):
            y_MCKW = rows.full @ x_MCHW.to(dtype, memory_format=torch.contiguous_format)  # K: rows of `full`
            return _columns_product(y_MCKW, rows, columns, flip, affine)
    out = x_MCHW.new_empty((*x_MCHW.shape[:2], height, width), dtype=dtype)
    sample_bytes = x_MCHW[0].numel() * dtype.itemsize if len(x_MCHW) else 1
    piece = max(1, torch.get_num_threads() * CACHE_BYTES // sample_bytes)
    with torch.autocast("cpu", enabled=False):
        for start in range(0, len(x_MCHW), piece):
            some = slice(start, start + piece)
            x = x_MCHW[some].to(dtype, memory_format=torch.contiguous_format)
            y_MCKW = _folded_rows_product(x, rows)
            out[some] = _columns_product(y_MCKW, rows, columns, None if flip is None else flip[some], affine)
    return out


def _folded_rows_product(x_MCHW: Tensor, rows: _Axis) -> Tensor:
    """`rows.full @ x` with half the multiplications, by the even and odd parts of the image."""
    flipped = x_MCHW.index_select(-2, rows.reflected)  # (M, C, h, W), h about half of H
    top = x_MCHW[..., : len(rows.reflected), :]  # (M, C, h, W)
    even = rows.even @ (top + flipped)  # (M, C, g, W), g about half of the rows wanted
    odd = rows.odd @ (top - flipped)  # (M, C, g, W), and one row more for the Nyquist term
    half = even.shape[-2]
    parts = [even + odd[..., :half, :], (even - odd[..., :half, :]).index_select(-2, rows.unfold)]
    if rows.nyquist is not None:
        parts.append(odd[..., half:, :])
    return torch.cat(parts, dim=-2)  # (M, C, K, W): the B rows wanted, and the Nyquist term's


def _columns_product(
    y_MCKW: Tensor, rows: _Axis, columns: _Axis, flip: Tensor | None, affine: tuple[Tensor, Tensor] | None
) -> Tensor:
    """From the rows' product to the result: columns, Nyquist term, normalisation."""
    right = columns.right[0] if flip is None else columns.right[flip.long()]  # (W, B), or (M, W, B)
    M, C, K, W = y_MCKW.shape
    out = (y_MCKW.reshape(M, C * K, W) @ right).view(M, C, K, -1)[:, :, : rows.size]  # (M, C, B, B)
    if rows.nyquist is not None and columns.nyquist is not None:
        v = (
            columns.nyquist[0] if flip is None else columns.nyquist[flip.long()].unsqueeze(-1)
        )  # (W,), (M, W, 1)
        strength = (y_MCKW[:, :, -1] @ v).view(M, C, 1, 1)
        out = torch.addcmul(out, strength, rows.alternating[:, None] * columns.alternating, value=-1)
    return out.contiguous() if affine is None else torch.addcmul(affine[1], out, affine[0])


@dataclass(frozen=True, eq=False)
class _Axis:
    """The matrices that take N pixels of one axis to B.

    Attributes:
        full: (B, N), with v of the module's formula as one more row where there is a Nyquist term.
        right: (2, N, B), the transpose for an image as it is, and for a flipped one.
        nyquist: (2, N), v for an image as it is, and for a flipped one; None without a Nyquist term.
        alternating: (B,), u of the module's formula.
        even: (g, h), acts on the sum of an image's first h rows and their mirror images.
        odd: (g, h) or (g + 1, h), acts on their difference.
        reflected: (h,) int64, the row that each of the first h is reflected to.
        unfold: (B - g,) int64, the row among the first g that each of the others flips.
    """

    full: Tensor
    right: Tensor
    nyquist: Tensor | None
    alternating: Tensor
    even: Tensor
    odd: Tensor
    reflected: Tensor
    unfold: Tensor

    @property
    def size(self) -> int:
        return self.right.shape[-1]


@lru_cache(maxsize=64)
def _axis(N: int, B: int, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> _Axis:
    """Made in float64, kept in `dtype` on the device."""
    offset = 0.5 if kernel == "aligned" else 0.0
    matrix = _lanczos_matrix(N, B) if kernel == "resize" else _fourier_matrix(N, B, offset)
    v = np.sin(np.pi * np.arange(N) * B / N)[None]
    has_nyquist = kernel == "fourier" and B % 2 == 0 and B < N
    full = np.concatenate([matrix, v]) if has_nyquist else matrix

    # A reflection about pixel 0 for the corner-aligned kernel, about the centre for the others.
    corner = kernel == "fourier"
    reflected = (-np.arange(N) - (not corner)) % N
    h, g = (N // 2 + 1, B // 2 + 1) if corner else ((N + 1) // 2, (B + 1) // 2)
    kept, folded = full[:, :h], full[:, reflected[:h]]
    once = np.where(
        reflected[:h] == np.arange(h), 0.25, 0.5
    )  # a row that is its own reflection is counted twice
    odd = ((kept - folded) * once)[np.r_[:g, B : len(full)]]

    def tensor(array: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

    with torch.inference_mode(False):  # a cached inference tensor could never be part of a graph
        return _Axis(
            full=tensor(full),
            right=tensor(np.stack([matrix.T, matrix.T[::-1]])),
            nyquist=tensor(np.concatenate([v, v[:, ::-1]])) if has_nyquist else None,
            alternating=tensor((-1.0) ** np.arange(B) / N),
            even=tensor(((kept + folded) * once)[:g]),
            odd=tensor(odd),
            reflected=torch.from_numpy(reflected[:h]).to(device),
            unfold=torch.from_numpy(((-np.arange(B) - (not corner)) % B)[g:]).to(device),
        )


def _fourier_matrix(N: int, B: int, offset: float) -> NDArray[np.float64]:
    """R of the module's formula, (B, N), with the centre of a pixel `offset` pixels from its corner."""
    k = np.arange(-(B // 2), B - B // 2)
    m, n = (np.arange(B) + offset) / B, (np.arange(N) + offset) / N
    matrix: NDArray[np.float64] = np.cos(2 * np.pi * k * (m[:, None, None] - n[:, None])).sum(-1) / N
    return matrix


def _lanczos_matrix(N: int, B: int) -> NDArray[np.float64]:
    """Anti-aliased Lanczos-3, (B, N): the kernel stretched by N/B, cut at the border and made to sum to 1."""
    distance = ((np.arange(N) + 0.5) / N * B)[None] - (np.arange(B) + 0.5)[:, None]
    weights = np.sinc(distance) * np.sinc(distance / LANCZOS_LOBES) * (np.abs(distance) < LANCZOS_LOBES)
    normalised: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalised


@lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, (C, 1, 1) each, that normalise pixels in [0, 255]."""
    with torch.inference_mode(False):
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
        return scale.float().view(-1, 1, 1).to(device), shift.float().view(-1, 1, 1).to(device)
