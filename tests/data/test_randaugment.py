"""RandAugment against timm: the same operations to the pixel, and the same policy in distribution."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, norm
from timm.data import auto_augment as timm_augment

from raytrain_speedup.data.base import IMAGENET_MEAN
from raytrain_speedup.data.randaugment import OPERATIONS, drawn, randaugment

FILL = (124, 116, 104)  # round(255 * mean), as timm's `create_transform` has it
HPARAMS = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
NOISE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[:4, :5]).resize((30, 24), Image.Resampling.BICUBIC)) // 2 + 20
LEVELS = (0.0, 0.9, 2.5, 4.99, 5.0, 7.77, 9.0, 10.0)
MANY = 3000


@pytest.fixture(autouse=True)
def posterize_to_black(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm asks for 0 bits at level 10. Pillow made that a black image until its version 13 refused it."""

    def posterize(image: Image.Image, bits: int, **_) -> Image.Image:
        return timm_augment.posterize(image, bits) if bits else image.point(lambda value: 0)

    monkeypatch.setitem(timm_augment.NAME_TO_OP, "PosterizeIncreasing", posterize)


def timms(magnitude: int) -> timm_augment.RandAugment:
    return timm_augment.rand_augment_transform(f"rand-m{magnitude}-mstd0.5-inc1", dict(HPARAMS))


@pytest.fixture
def timm_seeded() -> Iterator[None]:
    """timm draws from the two global generators."""
    held = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    random.setstate(held[0])
    np.random.set_state(held[1])  # noqa: NPY002


def ours(image: np.ndarray, magnitude: float, index: int = 0, epoch: int = 0) -> np.ndarray:
    return randaugment(image, magnitude, mean=IMAGENET_MEAN, seed=0, epoch=epoch, index=index)


@pytest.mark.parametrize("image", [NOISE, SMOOTH, NOISE[:, :, 0]], ids=["noise", "smooth", "gray"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", timm_augment._RAND_INCREASING_TRANSFORMS)
def test_every_operation_is_timms(name, sign, image, monkeypatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.25 if sign > 0 else 0.75)  # timm negates above .5
    fill = FILL if image.ndim == 3 else FILL[0]
    for level in LEVELS:
        theirs = timm_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=HPARAMS | {"img_mean": fill})
        found = OPERATIONS[name](Image.fromarray(image), sign * level / 10, fill)
        assert np.array_equal(found, theirs(Image.fromarray(image))), level


def test_the_table_and_the_numbers_are_timms() -> None:
    policy = timms(9)
    assert sorted(op.name for op in policy.ops) == sorted(OPERATIONS)
    assert policy.num_layers == 2 and policy.choice_weights is None  # with replacement
    assert {(op.prob, op.magnitude_std, op.magnitude_max) for op in policy.ops} == {(0.5, 0.5, None)}


@pytest.mark.parametrize("magnitude", [1, 5, 9])
def test_changes_as_many_images_as_much_as_timm(magnitude, timm_seeded) -> None:
    policy, picture = timms(magnitude), Image.fromarray(SMOOTH)
    theirs = np.stack([np.asarray(policy(picture)) for _ in range(MANY)])
    mine = np.stack([ours(SMOOTH, magnitude, index) for index in range(MANY)])
    changes = [np.abs(batch.astype(int) - SMOOTH).mean((1, 2, 3)) for batch in (mine, theirs)]
    unchanged, expected = ((change == 0).mean() for change in changes)
    assert unchanged == pytest.approx(expected, abs=0.03)  # .25 where neither operation is applied, and more
    error = np.hypot(*(change.std() / MANY**0.5 for change in changes))
    assert changes[0].mean() == pytest.approx(changes[1].mean(), abs=3 * error)
    assert ks_2samp(*changes).pvalue > 1e-3
    brightness = [batch.astype(int).mean((1, 2, 3)) for batch in (mine, theirs)]
    assert ks_2samp(*brightness).pvalue > 1e-3  # in either direction


@pytest.mark.parametrize("magnitude", [0.2, 5, 9.5])
def test_draws_follow_the_policy(magnitude) -> None:
    """Two of fifteen with replacement, by a fair coin each, at a normal level that is clipped to [0, 10]."""
    draws = [drawn(magnitude, seed=0, epoch=0, index=index) for index in range(MANY)]
    counts = Counter(len(draw) for draw in draws)
    assert [counts[n] / MANY for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    names = Counter(name for draw in draws for name, _ in draw)
    assert all(names[name] / MANY == pytest.approx(1 / 15, abs=0.015) for name in OPERATIONS)
    twice = sum(draw[0][0] == draw[1][0] for draw in draws if len(draw) == 2)
    assert twice / counts[2] == pytest.approx(1 / 15, abs=0.03)
    levels = np.array([10 * strength for draw in draws for _, strength in draw])
    assert (levels < 0).sum() / (levels != 0).sum() == pytest.approx(0.5, abs=0.03)
    levels = np.abs(levels)
    assert levels.max() <= 10
    for bound in (0, magnitude - 0.5, magnitude - 0.2, magnitude + 0.3, 10 - 1e-9):
        assert (levels <= bound).mean() == pytest.approx(
            norm.cdf(bound, magnitude, 0.5) * (bound >= 0), abs=0.03
        )


def test_both_operations_of_an_image_are_drawn_apart() -> None:
    pairs = [draw for i in range(MANY) if len(draw := drawn(5, seed=0, epoch=0, index=i)) == 2]
    first, second = np.array([[strength for _, strength in pair] for pair in pairs]).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert abs(np.corrcoef(np.abs(first), np.abs(second))[0, 1]) < 0.1


def test_magnitude_0_is_the_identity() -> None:
    assert all(np.array_equal(ours(NOISE, 0, index), NOISE) for index in range(20))


def test_is_a_function_of_epoch_and_sample() -> None:
    assert np.array_equal(ours(NOISE, 9, 3, 5), ours(NOISE, 9, 3, 5))
    different = {ours(NOISE, 9, index, epoch).tobytes() for index in range(10) for epoch in range(4)}
    assert len(different) > 20  # a quarter of the images is left alone


def test_gray_images_stay_gray() -> None:
    gray = NOISE[:, :, :1]
    shown = [randaugment(gray, 9, mean=(0.5,), seed=0, epoch=0, index=index) for index in range(200)]
    assert {image.shape for image in shown} == {gray.shape}
    assert len({image.tobytes() for image in shown}) > 100


def test_touches_no_global_generator() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    ours(NOISE, 9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
