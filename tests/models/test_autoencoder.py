"""Masked autoencoders: what the encoder sees, what the decoder is asked, and where the encoder goes afterwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from raytrain_speedup.models import ModelSettings, build_model, check_sizes, stride_of
from raytrain_speedup.models.mae import (
    Features,
    MaskedAutoencoder,
    Reconstruction,
    sines_and_cosines,
    visible_patches,
)
from raytrain_speedup.models.resize import change_size
from raytrain_speedup.settings import UserError

ENCODER = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
OPTIONS = ENCODER | {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
KEYS = torch.tensor([5, 2**62, -3])


def settings(**changed: Any) -> ModelSettings:
    return ModelSettings(**{"name": "mae/vit_tiny_patch16_224", "options": OPTIONS} | changed)


def build(image_size: int = 16, **changed: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"num_classes": 7, "in_channels": 3, "image_size": image_size}
    model = build_model(settings(**changed), dense=None, **sizes)
    assert isinstance(model, MaskedAutoencoder)
    return model.eval()


def reconstructed(model: MaskedAutoencoder, images: Tensor, keys: Tensor = KEYS) -> Reconstruction:
    found = model(images, keys, 0.75)
    assert isinstance(found, Reconstruction)
    return found


def test_what_is_masked_is_a_function_of_the_key_alone() -> None:
    together = visible_patches(KEYS, 16, 0.75)
    assert together.shape == (3, 4)
    for key, row in zip(KEYS, together, strict=True):
        assert len(set(row.tolist())) == 4 and torch.equal(visible_patches(key[None], 16, 0.75)[0], row)
    often = torch.bincount(visible_patches(torch.arange(4000), 16, 0.75).flatten(), minlength=16)
    assert (often.double() / 4000 - 0.25).abs().max() < 0.03, "every patch is seen as often as any other"
    assert visible_patches(KEYS, 4, 0.99).shape == (3, 1), "one at least is seen"


def test_nothing_of_a_masked_patch_is_seen_and_all_of_a_visible_one_is() -> None:
    model, images = build(), torch.randn(3, 3, 16, 16)
    prediction, masked = reconstructed(model, images)
    assert prediction.shape == (3, 16, 48) and masked.sum(1).tolist() == [12, 12, 12]
    for patch in range(16):
        changed, (row, column) = images.clone(), (patch // 4 * 4, patch % 4 * 4)
        changed[0, :, row : row + 4, column : column + 4] += 1
        same = torch.equal(reconstructed(model, changed).prediction[0], prediction[0])
        assert same == bool(masked[0, patch])


def test_the_encoder_is_timms() -> None:
    """Its features are those of timm's own forward pass; and what it makes of visible patches is what timm's blocks
    make of them alone."""
    model, images = build(), torch.randn(3, 3, 16, 16)
    twin = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **ENCODER).eval()
    twin.load_state_dict(model.encoder.state_dict())
    features = model(images)
    assert isinstance(features, Features) and features.num_classes == 7
    torch.testing.assert_close(features.values, twin.forward_features(images)[:, 1:].mean(1))

    handed: list[Tensor] = []
    model.decoder.register_forward_hook(lambda _, inputs, __: handed.extend(inputs))
    reconstructed(model, images)
    prefix, seen, visible = handed
    for sample in range(3):
        tokens = twin.patch_embed(images[sample : sample + 1])[0] + twin.pos_embed[0, 1:]
        first = twin.cls_token[0] + twin.pos_embed[0, :1]
        alone = twin.norm(twin.blocks(torch.cat([first, tokens[visible[sample]]])[None]))[0]
        torch.testing.assert_close(torch.cat([prefix[sample], seen[sample]]), alone)


def test_the_decoder_puts_patches_where_they_were() -> None:
    """Its blocks see, at the place of every patch, the token that was handed over or the mask token, and where."""
    model, images = build(), torch.randn(3, 3, 16, 16)
    decoder, handed, put = model.decoder, [], []
    decoder.register_forward_hook(lambda _, inputs, __: handed.extend(inputs))
    decoder.blocks.register_forward_pre_hook(lambda _, inputs: put.extend(inputs))
    reconstructed(model, images)
    (prefix, seen, visible), (tokens,) = handed, put
    torch.testing.assert_close(tokens[:, :1], decoder.embed(prefix))
    for sample in range(3):
        place = {patch: i for i, patch in enumerate(visible[sample].tolist())}
        for patch in range(16):
            own = decoder.embed(seen[sample, place[patch]]) if patch in place else decoder.mask_token[0, 0]
            torch.testing.assert_close(tokens[sample, 1 + patch], own + decoder.pos_embed[0, patch])


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    table = sines_and_cosines(9, 8)
    for patch in range(9):
        row, column = divmod(patch, 3)
        expected = [
            wave(place / 10000 ** (k / 2))
            for place in (column, row)
            for wave in (math.sin, math.cos)
            for k in (0, 1)
        ]
        assert table[patch].tolist() == pytest.approx(expected)
    model = build()
    torch.testing.assert_close(model.encoder.pos_embed[0, 1:], sines_and_cosines(16, 24))
    torch.testing.assert_close(model.decoder.pos_embed[0], sines_and_cosines(16, 16))
    assert model.encoder.pos_embed[0, 0].abs().max() == 0


def test_it_follows_the_image_size() -> None:
    """Both tables as timm resizes one of a vision transformer alone, the class token's row untouched."""
    model = build()
    with torch.no_grad():
        model.encoder.pos_embed.normal_()
    cls, grid = model.encoder.pos_embed[:, :1].clone(), model.encoder.pos_embed[:, 1:].clone()
    change_size(model, 8)
    assert reconstructed(model, torch.randn(3, 3, 8, 8)).prediction.shape == (3, 4, 48)
    small = torch.nn.functional.interpolate(
        grid.view(1, 4, 4, 24).permute(0, 3, 1, 2), size=2, mode="bilinear"
    )
    torch.testing.assert_close(model.encoder.pos_embed[:, 1:], small.permute(0, 2, 3, 1).reshape(1, 4, 24))
    assert torch.equal(model.encoder.pos_embed[:, :1], cls) and model.decoder.pos_embed.shape == (1, 4, 16)
    assert stride_of(settings(), image_size=16) == 4
    check_sizes(settings(), [8, 12], num_classes=7, image_size=16, dense=None)
    with pytest.raises(UserError, match="from 16 to 10: it takes multiples of 4"):
        check_sizes(settings(), [10], num_classes=7, image_size=16, dense=None)


def test_its_encoder_becomes_a_classifier(tmp_path: Path) -> None:
    model = build()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    found = ModelSettings(name="timm/vit_tiny_patch16_224", options=ENCODER, pretrained=tmp_path / "model.pt")
    sizes = {"num_classes": 7, "in_channels": 3}
    classifier: Any = build_model(found, image_size=16, **sizes).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(classifier.forward_features(images), model.encoder.forward_features(images))
    larger: Any = build_model(found, image_size=32, **sizes)
    assert larger.pos_embed.shape == (1, 65, 24), "at another size its positions are resized"
    probe = build_model(found.model_copy(update={"head_only": True}), image_size=16, **sizes)
    trained = {name for name, parameter in probe.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias"}
    again = build(pretrained=tmp_path / "model.pt")
    assert torch.equal(again.decoder.mask_token, model.decoder.mask_token), "and goes on as what it was"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "mae/resnet18", "options": {}}, "mae/resnet18"),
        ({"name": "mae/none_such"}, "there is no model 'mae/none_such'"),
        ({"options": OPTIONS | {"decoder_width": 8}}, "does not take .*decoder_width"),
        ({"options": OPTIONS | {"decoder_dim": 18}}, "expected multiples of 4"),
        ({"options": OPTIONS | {"decoder_heads": 3}}, "does not take"),
        ({"options": OPTIONS | {"patch_size": 5}}, r"16 is no multiple of mae/\w+'s patch of 5"),
    ],
)
def test_what_cannot_be_is_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        build(**changed)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["resnet8", "mae/vit_tiny_patch16_224"])
def test_a_head_that_cannot_be_trained_alone_is_refused(name: str) -> None:
    options = {} if name == "resnet8" else OPTIONS
    with pytest.raises(UserError, match=r"model\.head_only: \w+ has (batch normalisation|no classifier)"):
        build_model(
            ModelSettings(name=name, options=options, head_only=True),
            num_classes=7,
            image_size=16,
            dense=None,
        )
