"""The crop against its definition by FFT, and the properties the curriculum relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from raytrain_speedup.methods.curriculum import crop as crop_module
from raytrain_speedup.methods.curriculum.crop import crop_batch, low_frequency_crop

KERNELS = ("fourier", "aligned", "resize")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop_by_fft(x: Tensor, height: int, width: int) -> Tensor:
    """The paper's definition, in float64."""
    H, W = x.shape[-2:]
    top, left = H // 2 - height // 2, W // 2 - width // 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(x.double()), dim=(-2, -1))
    spectrum = spectrum[..., top : top + height, left : left + width]
    image = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)))
    return image.real * (height * width) / (H * W)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    full = draw(st.integers(1, 70))
    return full, draw(st.integers(1, full))


@settings(max_examples=150, deadline=None)
@given(sizes(), sizes(), st.integers(0, 2**31))
def test_equals_the_definition_by_fft(rows: tuple[int, int], columns: tuple[int, int], seed: int) -> None:
    x = images(2, rows[0], columns[0], seed=seed)
    expected = crop_by_fft(x, rows[1], columns[1])
    torch.testing.assert_close(
        low_frequency_crop(x, (rows[1], columns[1])).double(), expected, atol=1e-5, rtol=0
    )
    with_graph = low_frequency_crop(x.double().requires_grad_(), (rows[1], columns[1]))
    torch.testing.assert_close(with_graph.detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("N", [224, 225, 384])
@pytest.mark.parametrize("B", [96, 127, 160, 192])
def test_equals_the_definition_at_published_sizes(N: int, B: int) -> None:
    x = images(2, 3, N, N)
    got = low_frequency_crop(x, B)
    torch.testing.assert_close(got.double(), crop_by_fft(x, B, B), atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(sizes(), sizes(), st.sampled_from(KERNELS))
def test_both_ways_to_multiply_agree(rows: tuple[int, int], columns: tuple[int, int], kernel: str) -> None:
    x = images(2, 3, rows[0], columns[0], dtype=torch.float64)
    size = (rows[1], columns[1])
    folded, dense = low_frequency_crop(x, size, kernel), low_frequency_crop(x.requires_grad_(), size, kernel)
    torch.testing.assert_close(folded, dense.detach(), atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(sizes(), sizes(), st.sampled_from(KERNELS))
def test_constants_are_kept(rows: tuple[int, int], columns: tuple[int, int], kernel: str) -> None:
    x = torch.full((rows[0], columns[0]), 7.5, dtype=torch.float64)
    got = low_frequency_crop(x, (rows[1], columns[1]), kernel)
    torch.testing.assert_close(got, torch.full_like(got, 7.5), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_commutes_with_normalisation(kernel: str) -> None:
    x = images(2, 3, 32, 32)
    mean, std = (torch.tensor(metrics).view(-1, 1, 1) for metrics in (MEAN, STD))
    before = low_frequency_crop((x - mean) / std, 20, kernel)
    torch.testing.assert_close(before, (low_frequency_crop(x, 20, kernel) - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["aligned", "resize"])
@pytest.mark.parametrize(("N", "B"), [(32, 16), (32, 21), (33, 20), (33, 17)])
def test_centred_kernels_commute_with_flips(kernel: str, N: int, B: int) -> None:
    x = images(2, N, N, dtype=torch.float64)
    for axis in (-2, -1):
        flipped = low_frequency_crop(x.flip(axis), B, kernel)
        torch.testing.assert_close(flipped, low_frequency_crop(x, B, kernel).flip(axis), atol=1e-13, rtol=0)


def test_the_papers_crop_does_not_commute_with_a_flip() -> None:
    """Why `crop_batch` flips first, and why `aligned` exists."""
    x = images(32, 32)
    assert not torch.allclose(
        low_frequency_crop(x.flip(-1), 16), low_frequency_crop(x, 16).flip(-1), atol=0.1
    )


@pytest.mark.parametrize("B", [9, 16, 23])
def test_aligned_samples_a_wave_at_half_pixels(B: int) -> None:
    """A wave inside the band is the same wave, sampled at the centres of the larger pixels."""

    def wave(pixels: int) -> Tensor:
        return torch.cos(2 * torch.pi * 3 * (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels + 1)

    got = low_frequency_crop(wave(32).expand(32, 32), B, "aligned")
    torch.testing.assert_close(got, wave(B).expand(B, B), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("N", "B"), [(224, 96), (64, 28), (61, 30), (32, 31)])
def test_resize_is_pillows_lanczos(N: int, B: int) -> None:
    x = images(N, N)
    pillow = Image.fromarray(x.numpy()).resize((B, B), Image.Resampling.LANCZOS)
    torch.testing.assert_close(
        low_frequency_crop(x, B, "resize"), torch.from_numpy(np.array(pillow)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_full_size_is_the_input_itself(kernel: str) -> None:
    x = images(2, 3, 33, 32)
    assert low_frequency_crop(x, (33, 32), kernel) is x


@pytest.mark.parametrize("size", [33, (16, 40), 0, (16, 0)])
def test_images_are_never_enlarged(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot reduce 32 x 32 pixels to"):
        low_frequency_crop(images(3, 32, 32), size)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("B", [5, 6])
def test_gradient(kernel: str, B: int) -> None:
    x = images(2, 8, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: low_frequency_crop(t, B, kernel), x)


def test_matrices_first_made_under_inference_mode_serve_a_graph_later() -> None:
    crop_module._axis.cache_clear()
    with torch.inference_mode():
        low_frequency_crop(images(16, 16), 8)
    x = images(16, 16).requires_grad_()
    low_frequency_crop(x, 8).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((16, 16), 0.25), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x = images(3, 64, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = low_frequency_crop(x, 28)
    assert got.dtype == dtype
    torch.testing.assert_close(got, crop_by_fft(x, 28, 28).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [16, 21, (32, 20), (32, 40)])
def test_crop_batch_is_flip_then_crop_then_normalise(kernel: str, size: int | tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (5, 3, 32, 40), generator=generator, dtype=torch.uint8)
    flip = torch.tensor([True, False, True, True, False])
    mean, std = (torch.tensor(metrics, dtype=torch.float64).view(-1, 1, 1) for metrics in (MEAN, STD))
    for flags in (flip, None):
        flipped = torch.stack(
            [p.flip(-1) if flags is not None and f else p for p, f in zip(pixels, flip, strict=True)]
        )
        expected = (low_frequency_crop(flipped.double() / 255, size, kernel) - mean) / std
        got = crop_batch(pixels, size, mean=MEAN, std=STD, flip=flags, kernel=kernel)
        assert got.dtype == torch.float32 and got.is_contiguous()
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_format_is_kept(kernel: str) -> None:
    x = images(2, 3, 32, 32)
    got = low_frequency_crop(x.contiguous(memory_format=torch.channels_last), 16, kernel)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, low_frequency_crop(x, 16, kernel), atol=1e-6, rtol=0)
    assert low_frequency_crop(x, 16, kernel).is_contiguous()


def test_empty_batches_pass() -> None:
    assert low_frequency_crop(images(0, 3, 32, 32), 16).shape == (0, 3, 16, 16)
    nothing = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert crop_batch(nothing, 16, mean=MEAN, std=STD, flip=torch.zeros(0, dtype=torch.bool)).shape == (
        0,
        3,
        16,
        16,
    )


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, pixels = images(7, 3, 32, 32), torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    flip = torch.arange(7) % 3 == 1

    def both() -> list[torch.Tensor]:
        return [low_frequency_crop(x, 16), crop_batch(pixels, 16, mean=MEAN, std=STD, flip=flip)]

    whole = both()
    monkeypatch.setattr(crop_module, "CACHE_BYTES", 3 * 32 * 32 * 4)
    torch.testing.assert_close(both(), whole, atol=1e-5, rtol=0)
