"""Dropped tokens: which stay, what they cost, and a run whose last stage sees all of them."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import PatchDropout as TimmPatchDropout

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.cost.measure import training_flops
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.run import run
from raytrain_speedup.models.tokens import TokenDropout, can_drop_tokens, keep_tokens
from raytrain_speedup.settings import UserError
from raytrain_speedup.tasks import TASKS

KEYS = {
    "data.image_size": 32,
    "data.val_fraction": 0.84,
    "train.epochs": 3,
    "train.batch_size": 64,
    "train.lr": 0.01,
    "train.threads": 1,
    "train.checkpoint_every": 0,
    "curriculum.method": "patch-dropout",
}


def vit() -> torch.nn.Module:
    return timm.create_model("test_vit", img_size=32, patch_size=4, num_classes=10)


@pytest.mark.parametrize(("kept", "count"), [(0.5, 8), (0.3, 5), (0.01, 1)])
def test_a_random_part_of_the_patches_stays_behind_the_prefix(kept: float, count: int) -> None:
    """As timm's own layer does, and each patch equally often."""
    tokens = torch.arange(17.0).view(1, 17, 1).expand(2000, 17, 3)
    layer = TokenDropout(prefix=1)
    layer.kept = kept
    shown = layer(tokens)
    assert shown.shape == (2000, 1 + count, 3)
    if kept == 0.5:
        assert shown.shape == TimmPatchDropout(0.5)(tokens).shape
    assert (shown[:, 0] == 0).all() and (shown[:, 1:] > 0).all()
    assert (shown == shown[:, :, :1]).all()  # whole rows
    assert all(len(row.unique()) == count + 1 for row in shown[:20, :, 0])
    often = torch.bincount(shown[:, 1:, 0].flatten().long(), minlength=17)[1:]
    expected = 2000 * count / 16
    assert ((often - expected).abs() < 5 * expected**0.5).all()
    assert torch.equal(layer.eval()(tokens), tokens)


def test_a_vit_keeps_what_it_is_told_and_pays_for_that() -> None:
    model, task = vit(), TASKS["classification"]().build()
    assert can_drop_tokens(model) and not can_drop_tokens(timm.create_model("test_resnet"))
    names, full = list(model.state_dict()), training_flops(model, task, (3, 32, 32))
    keep_tokens(model, 0.5)
    assert list(model.state_dict()) == names
    assert 0.4 < training_flops(model, task, (3, 32, 32)) / full < 0.6
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    halved = model.eval()(x)
    keep_tokens(model, 1.0)
    assert torch.equal(halved, model(x))
    assert training_flops(model, task, (3, 32, 32)) == full


def test_a_run_drops_tokens_first_and_ends_on_all_of_them(tmp_path) -> None:
    """Of 3 passes of compute, .8 at half the price: 3 (1.6 + .2) samples a sample; FLOPs as both stages cost."""
    experiment = load_experiment("digits", KEYS | {"model.name": "timm/test_vit", "pruning.method": "none"})
    metrics = run(experiment, LocalReporter(tmp_path / "tokens"), device=torch.device("cpu")).to_dict()
    assert metrics["progress"] == 1
    assert metrics["samples_shown"] == pytest.approx(3 * 1.8 * 230, rel=0.02)
    plain = experiment.with_overrides({"curriculum.method": "none"})
    whole = run(plain, LocalReporter(tmp_path / "none"), device=torch.device("cpu")).to_dict()
    assert 0.95 < metrics["train_flops"] / whole["train_flops"] < 1.3


def test_a_network_without_a_place_for_it_is_refused(tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"curriculum.method: patch-dropout drops tokens, and resnet8 has no place"
    ):
        run(load_experiment("digits", KEYS), LocalReporter(tmp_path), device=torch.device("cpu"))
