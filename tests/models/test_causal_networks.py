"""Causal language models: what transformers and peft say of the same tokens, in float64."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raytrain_speedup.models import ModelSettings, build_model, without_weights
from raytrain_speedup.models.causal_lm import CausalLM, build_causal_lm
from raytrain_speedup.settings import UserError

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
OPTIONS = {"llama": LLAMA, "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}}


def network(family: str = "llama", **options: Any) -> CausalLM:
    torch.manual_seed(0)
    return build_causal_lm(family, {**OPTIONS[family], **options}, vocabulary=40).double().eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as transformers writes it."""
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", vocab_size=48, **LLAMA)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def alone(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one sample, by transformers itself."""
    return model.network(input_ids=ids[None], use_cache=False).logits[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sample_is_answered_as_it_is_alone(family: str) -> None:
    """Whatever pads it, and whatever shares its row."""
    model, ids = network(family), torch.randint(0, 40, (3, 9))
    padded = model(torch.cat([ids, torch.zeros(3, 4, dtype=torch.int64)], 1))
    for sample in range(3):
        torch.testing.assert_close(padded[sample, :9], alone(model, ids[sample]), rtol=0, atol=1e-12)
    row = torch.cat([ids[0, :7], ids[1, :4], ids[2, :5], torch.tensor([39])])[None]
    segments = torch.tensor([[*[0] * 7, *[1] * 4, *[2] * 5, -1]])
    positions = torch.tensor([[*range(7), *range(4), *range(5), 0]])
    packed = model(row, segments, positions)[0]
    for sample, (begin, end) in enumerate([(0, 7), (7, 11), (11, 16)]):
        expected = alone(model, ids[sample, : end - begin])
        torch.testing.assert_close(packed[begin:end], expected, rtol=0, atol=1e-12)


def test_adapters_alone_are_trained_and_can_be_merged(tmp_path: Path) -> None:
    model = network(lora_rank=2, lora_alpha=4.0)
    before = copy.deepcopy(model.state_dict())
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    layers = 2 * 7  # q, k, v, o, gate, up and down of both blocks
    assert len(trained) == 2 * layers
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1.0)
    ids = torch.randint(0, 40, (4, 9))
    for _ in range(2):  # the second factor starts from zero
        model(ids).square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) == (name not in trained) for name in before)
    name = "network.base_model.model.model.layers.0.mlp.up_proj"
    a, b = (after[f"{name}.lora_{side}.default.weight"] for side in "AB")
    expected = model(ids)
    merged = model.merged()
    torch.testing.assert_close(
        merged.model.layers[0].mlp.up_proj.weight, before[f"{name}.base_layer.weight"] + 4.0 / 2 * b @ a
    )
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(model(ids), expected), "merging is done in a copy"
    assert any("lora_" in name for name, _ in model.named_parameters())


def test_a_checkpoint_is_read_as_it_is(folder: Path) -> None:
    settings = ModelSettings(name="transformers/llama", pretrained=folder)
    found = build_model(settings, num_classes=40, image_size=32, dense=None)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, 40, (2, 8))
    torch.testing.assert_close(found(ids), own(input_ids=ids).logits)
    content = json.loads((folder / "config.json").read_text())
    other = {"torch_dtype": "float16", "of_another_version": 1}
    (folder / "config.json").write_text(json.dumps(content | other))
    fresh = build_model(without_weights(settings), num_classes=40, image_size=32, dense=None)
    shapes = [{name: each.shape for name, each in model.state_dict().items()} for model in (found, fresh)]
    assert shapes[0] == shapes[1] and not torch.equal(found(ids), fresh(ids))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "transformers/gpt2"},
            r"model\.name: transformers/gpt2, and .* holds a llama; expected transf",
        ),
        ({"options": LLAMA}, r"model\.options: hidden_size, .* beside model\.pretrained; expected lora_"),
        (
            {"pretrained": Path("nowhere")},
            r"model\.pretrained: nowhere has no readable config\.json \(No such",
        ),
        (
            {"num_classes": 49},
            r"data\.tokenizer: 49 tokens, and transformers/llama has 48 embeddings; expected",
        ),
        (
            {"image_size": 40},
            r"data\.max_length: rows have 40 tokens, and transformers/llama knows 32 positions",
        ),
        (
            {"pretrained": None, "options": {"layers": 2}},
            r"model\.options: transformers/llama has no 'layers'",
        ),
        ({"pretrained": None, "name": "transformers/lama"}, r"model\.name: transformers/lama: .*lama"),
        ({"options": {"lora_size": 2}}, r"model\.options: 'lora_size' is not known; expected lora_rank, "),
        ({"options": {"lora_alpha": 2}}, r"model\.options\.lora_rank: missing"),
        (
            {"options": {"lora_rank": 2, "lora_targets": ["convolution"]}},
            r"model\.options: LoRA refuses .*convol",
        ),
        ({"drop_rate": 0.1}, r"model\.drop_rate: not known to transformers/llama"),
        (
            {"weights": "tiny", "pretrained": None},
            r"model\.weights: none are published for transformers/llama",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(folder: Path, keys: dict[str, Any], message: str) -> None:
    given = {"name": "transformers/llama", "pretrained": folder, "num_classes": 40, "image_size": 32, **keys}
    shape = {key: given.pop(key) for key in ("num_classes", "image_size")}
    with pytest.raises(UserError) as caught:
        build_model(ModelSettings(**given), dense=None, **shape)
    assert re.match(message, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)


def test_a_file_that_is_no_checkpoint_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(
        UserError, match=r"^model\.pretrained: .*checkpoint cannot be read: .*; expected a folder"
    ):
        build_causal_lm("llama", {}, vocabulary=40, folder=folder)
