"""Changing a model's image size in mid-run: tables, moments, EMA, and every family at its bandwidths."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, SWIN, VIT
from torch import Tensor, nn

from raytrain_speedup.models import ModelSettings, build_model, check_sizes, stride_of
from raytrain_speedup.models.cswin import CSWin
from raytrain_speedup.models.resize import at_size, change_size, position_tables, resize_rows, size_of
from raytrain_speedup.settings import UserError

DEIT = ModelSettings(name="timm/deit_tiny_patch16_224", options=VIT)
SWIN_T = ModelSettings(name="timm/swin_tiny_patch4_window7_224", options=SWIN)


def build(settings: ModelSettings, size: int = 224) -> nn.Module:
    return build_model(settings, num_classes=5, image_size=size)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, size: int) -> Tensor:
    images, target = torch.randn(2, 3, size, size), torch.tensor([0, 3])
    loss = F.cross_entropy(model(images), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def train_at_every_size(model: nn.Module, sizes: tuple[int, ...]) -> None:
    """A step per bandwidth: parameters, moments and EMA agree in shape; the EMA evaluates at full size."""
    ema = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    parameters = list(model.parameters())
    for size in sizes:
        change_size(model, size, optimizer=optimizer, ema=ema)
        assert torch.isfinite(train_step(model, optimizer, size))
        for kept, parameter, average in zip(parameters, model.parameters(), ema.parameters(), strict=True):
            assert kept is parameter
            assert average.shape == parameter.shape == optimizer.state[parameter]["exp_avg"].shape
            assert (optimizer.state[parameter]["exp_avg_sq"] >= 0).all()
        with at_size(ema, sizes[-1]), torch.no_grad():
            assert torch.isfinite(ema.eval()(torch.randn(1, 3, sizes[-1], sizes[-1]))).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_family_trains_at_each_of_its_bandwidths(name: str) -> None:
    torch.manual_seed(0)
    options, sizes = FAMILIES[name]
    settings = ModelSettings(name=name, options=options)
    check_sizes(settings, sizes, num_classes=5, image_size=sizes[-1])
    train_at_every_size(build(settings, sizes[-1]), sizes)


def test_cswin_trains_at_each_of_its_bandwidths() -> None:
    check_sizes(ModelSettings(name="cswin_t"), (96, 160, 224), num_classes=5, image_size=224)
    model = CSWin(16, (1, 2, 2, 1), (2, 2, 4, 4), num_classes=5)
    train_at_every_size(model, (96, 160, 224))


@pytest.mark.parametrize("settings", [DEIT, SWIN_T], ids=["deit", "swin"])
def test_a_changed_model_is_one_built_for_that_size(settings: ModelSettings) -> None:
    """Windows, masks and indices too: with the same weights both give the same logits."""
    torch.manual_seed(0)
    changed, built = build(settings, 224), build(settings, 96)
    change_size(changed, 96)
    built.load_state_dict(changed.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(changed.eval()(images), built.eval()(images))


def test_swin_windows_are_a_thirty_second_of_the_image() -> None:
    model = build(SWIN_T)
    for size, window in ((96, 3), (160, 5), (384, 12), (224, 7)):
        change_size(model, size)
        blocks = [block for stage in model.layers for block in stage.blocks]
        assert {block.window_size for block in blocks} == {(window, window)}
        assert {len(table) for table in position_tables(model).values()} == {(2 * window - 1) ** 2}
    assert build(SWIN_T, 64).layers[0].blocks[0].window_size == (2, 2)


def test_moments_and_ema_are_resized_as_the_table_is() -> None:
    model = build(DEIT)
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer, 224)
    ema = copy.deepcopy(model)
    table, state = model.pos_embed, optimizer.state[model.pos_embed]
    before = {"table": table.detach().clone(), "ema": ema.pos_embed.detach().clone()}
    before |= {key: state[key].clone() for key in ("exp_avg", "exp_avg_sq")}
    change_size(model, 96, optimizer=optimizer, ema=ema)
    after = {
        "table": table,
        "ema": ema.pos_embed,
        "exp_avg": state["exp_avg"],
        "exp_avg_sq": state["exp_avg_sq"],
    }
    for key, old in before.items():
        grid = old[0, 1:].T.reshape(1, -1, 14, 14)
        expected = F.interpolate(grid, size=(6, 6), mode="bilinear").reshape(-1, 36).T
        torch.testing.assert_close(after[key].detach()[0, 1:], expected)
        assert torch.equal(after[key].detach()[0, 0], old[0, 0]), "the class token has no place on the grid"
    assert state["step"] == 1


def test_momentum_of_sgd_is_resized() -> None:
    model = build(SWIN_T)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_step(model, optimizer, 224)
    change_size(model, 96, optimizer=optimizer)
    for table in position_tables(model).values():
        assert optimizer.state[table]["momentum_buffer"].shape == table.shape == (25, table.shape[1])
    train_step(model, optimizer, 96)


@pytest.mark.parametrize("settings", [DEIT, SWIN_T], ids=["deit", "swin"])
def test_the_same_size_changes_nothing(settings: ModelSettings) -> None:
    model = build(settings)
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer, 224)
    before, gradient = copy.deepcopy(optimizer.state_dict()), next(model.parameters()).grad
    weights = copy.deepcopy(model.state_dict())
    change_size(model, 224, optimizer=optimizer)
    assert next(model.parameters()).grad is gradient
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before["state"][number][key]) for key, value in state.items())


@pytest.mark.parametrize("settings", [DEIT, SWIN_T], ids=["deit", "swin"])
def test_an_evaluation_at_full_size_leaves_the_tables_exactly_as_they_were(settings: ModelSettings) -> None:
    model = build(settings)
    change_size(model, 96)
    weights = copy.deepcopy(model.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        logits = model.eval()(images)
        with at_size(model, 224):
            assert size_of(model) == 224
            model(torch.randn(1, 3, 224, 224))
        assert torch.equal(model(images), logits)
    assert size_of(model) == 96
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_loss_still_held_from_the_old_size_does_no_harm() -> None:
    """The graph behind it keeps the table's gradient accumulator, which knows the old shape."""
    model = build(DEIT)
    optimizer = torch.optim.AdamW(model.parameters())
    held = train_step(model, optimizer, 224)
    change_size(model, 96, optimizer=optimizer)
    train_step(model, optimizer, 96)
    assert held.requires_grad
    assert model.pos_embed.grad.shape == (1, 37, 48)


def test_ddp_is_wrapped_again_after_a_change(tmp_path: Path) -> None:
    """Its buckets are fixed by shape; the old wrapper may still be alive."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = build(DEIT)
        optimizer = torch.optim.AdamW(model.parameters())
        wrapped = nn.parallel.DistributedDataParallel(model)
        train_step(wrapped, optimizer, 224)
        change_size(model, 96, optimizer=optimizer)
        again = nn.parallel.DistributedDataParallel(model)
        train_step(again, optimizer, 96)
        assert model.pos_embed.grad.shape == (1, 37, 48)
        del wrapped
    finally:
        torch.distributed.destroy_process_group()


@given(
    side=st.integers(1, 12),
    new_side=st.integers(1, 12),
    prefix=st.integers(0, 2),
    slope=st.floats(-3, 3),
)
def test_rows_are_resized_about_their_centres(side: int, new_side: int, prefix: int, slope: float) -> None:
    """A constant stays, a ramp keeps its middle, flipping commutes, the prefix is untouched."""
    x = (torch.arange(side) + 0.5) / side
    ramp = (slope * x).repeat(side)
    rows = torch.stack([torch.ones(side * side), ramp], dim=1)
    rows = torch.cat([torch.full((prefix, 2), 7.0), rows])
    out = resize_rows(rows, prefix + new_side**2, prefix=prefix)
    assert torch.equal(out[:prefix], rows[:prefix])
    torch.testing.assert_close(out[prefix:, 0], torch.ones(new_side**2))
    torch.testing.assert_close(out[prefix:, 1].mean(), torch.tensor(slope / 2), atol=1e-5, rtol=1e-5)
    flipped = torch.cat([rows[:prefix], rows[prefix:].flip(0)])
    again = resize_rows(flipped, prefix + new_side**2, prefix=prefix)
    torch.testing.assert_close(again[prefix:], out[prefix:].flip(0))
    if side == new_side:
        assert torch.equal(out, rows)


def test_a_checkpoint_of_an_early_stage_resumes() -> None:
    """The size first, then the state: the next step equals the one of the uninterrupted run."""
    torch.manual_seed(0)
    models = [build(DEIT), build(DEIT)]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    change_size(models[0], 96, optimizer=optimizers[0])
    train_step(models[0], optimizers[0], 96)
    saved = copy.deepcopy((models[0].state_dict(), optimizers[0].state_dict()))
    change_size(models[1], 96, optimizer=optimizers[1])
    models[1].load_state_dict(saved[0])
    optimizers[1].load_state_dict(saved[1])
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(1)
        change_size(model, 160, optimizer=optimizer)
        train_step(model, optimizer, 160)
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_file_from_another_size_has_its_tables_resized(tmp_path: Path) -> None:
    """Fine-tuning at another resolution: the public code never resizes them."""
    for settings in (DEIT, SWIN_T):
        source = build(settings, 224)
        torch.save(source.state_dict(), tmp_path / "weights.pt")
        model = build(settings.model_copy(update={"pretrained": tmp_path / "weights.pt"}), 96)
        change_size(source, 96)
        for key, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("timm/mixer_s32_224", (160, 224), "from 224 to 160"),
        ("timm/cait_xxs24_224", (96, 224), "from 224 to 96"),
        ("timm/beit_base_patch16_224", (96, 224), "grid is not square"),
        ("torchvision/vit_b_16", (192, 224), "from 224 to 192"),
        ("timm/deit_tiny_patch16_224", (100, 224), "multiples of 16"),
        ("timm/swin_tiny_patch4_window7_224", (112, 224), "multiples of 32"),
        ("timm/pvt_v2_b0", (112, 224), "multiples of 32"),
        ("cswin_t", (112, 224), "multiples of 32"),
        ("vgg11", (8, 224), "from 224 to 8"),
    ],
)
def test_what_cannot_change_size_is_refused_by_name(name: str, sizes: tuple[int, ...], expected: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UserError) as caught:
        check_sizes(ModelSettings(name=name), sizes, num_classes=5, image_size=224)
    assert f"model.name: {name} cannot change its image size" in str(caught.value)
    assert expected in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "image_size", "stride"),
    [
        ("resnet18", 32, 4),
        ("wrn40_2", 32, 4),
        ("cswin_b", 224, 32),
        ("timm/deit_small_patch16_224", 224, 16),
        ("timm/swin_base_patch4_window7_224", 224, 32),
        ("timm/pvt_v2_b0", 64, 32),
        ("timm/convnext_base", 224, 32),
        ("timm/resnet50", 64, 4),
        ("torchvision/resnet50", 224, 32),
    ],
)
def test_strides(name: str, image_size: int, stride: int) -> None:
    assert stride_of(ModelSettings(name=name), image_size=image_size) == stride


def test_stride_of_small_patches() -> None:
    settings = ModelSettings(name="timm/vit_tiny_patch16_224", options={"patch_size": 4, **VIT})
    assert stride_of(settings, image_size=64) == 4
    check_sizes(settings, (28, 48, 56, 64), num_classes=10, image_size=64)
