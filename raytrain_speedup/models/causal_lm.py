"""Causal language models of `transformers`, whole or with LoRA adapters of `peft` on frozen weights.

`model.name: transformers/<model type>` builds a fresh network of that type from `model.options`, the keys of its
configuration; with `model.pretrained: <folder>` it is the checkpoint in that folder (what `save_pretrained`
writes), and nothing is fetched. Options that begin with `lora_` are not of the configuration: they ask for LoRA (Hu
et al., ICLR 2022, https://arxiv.org/abs/2106.09685), whose adapters are then all that is trained.

    network = build_causal_lm("llama", {"hidden_size": 64, ..., "lora_rank": 8}, vocabulary=258)
    logits = network(ids)                                  # (b, L) int64 -> (b, L, V)
    network.merged().save_pretrained("folder")             # an ordinary checkpoint of transformers again
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raytrain_speedup.optional import optional_library
from raytrain_speedup.settings import UserError

FAMILY = "transformers"
"""How names of these networks begin, before the slash."""

LORA = "lora_"
LORA_DEFAULTS: dict[str, Any] = {
    "lora_rank": None,
    "lora_alpha": 16.0,
    "lora_dropout": 0.0,
    "lora_targets": "all-linear",
}
"""Rank (None: all weights are trained), alpha (the product is scaled by alpha / rank), dropout before the first
factor, and the names of the linear layers that are adapted; `all-linear` are those of every block."""


class CausalLM(nn.Module):
    """A network of `transformers` that is asked with tokens alone, or with several samples in a row.

    Attention goes by a mask that is given whole, so that no kernel's choice waits for what a device holds.

    Args:
        network: of `transformers`, or of `peft` around one.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, segments: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits (r, L, V) of the token after each.

        Padding after a sample needs no mask: a token looks back alone.

        Args:
            ids: (r, L) int64.
            segments: (r, L) int64, which sample of its row a token belongs to: it sees no other's. By default a row
                is one sample.
            positions: (r, L) int64, of each token in its sample.
        """
        rows, length = ids.shape
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        mask = seen.expand(rows, 1, length, length)
        if segments is not None:
            mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
        if positions is None:
            positions = torch.arange(length, device=ids.device).expand(rows, length)
        return self.network(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits

    def embeddings(self) -> Tensor:
        """(V, d), the table that tokens are looked up in."""
        return self.network.get_input_embeddings().weight

    def merged(self) -> Any:
        """The network of `transformers` alone, a copy with the adapters added to its weights, on the CPU."""
        network = copy.deepcopy(self.network).cpu()
        return network.merge_and_unload() if hasattr(network, "merge_and_unload") else network


def build_causal_lm(
    model_type: str,
    options: Mapping[str, Any],
    *,
    vocabulary: int,
    length: int | None = None,
    folder: Path | None = None,
) -> CausalLM:
    """A causal language model; fresh weights and adapters are drawn from torch's global generator.

    Args:
        model_type: as `transformers` calls it, such as `llama`, `qwen2` or `gpt2`.
        options: keys of its configuration, and those of `LORA_DEFAULTS`.
        vocabulary: tokens of the data; a checkpoint may know more.
        length: tokens of a row; None where it is not known yet.
        folder: of a checkpoint, whose configuration holds.

    Raises:
        UserError: if the type, an option or the checkpoint is not there or does not fit.
    """
    library = optional_library("transformers", key="model.name", extra="llm")
    lora = {key: value for key, value in options.items() if key.startswith(LORA)}
    own = {key: value for key, value in options.items() if key not in lora}
    if folder is None:
        network = _fresh(library, model_type, {"vocab_size": vocabulary, **own})
    else:
        network = _read(library, model_type, own, folder)
    known = network.get_input_embeddings().weight.shape[0]
    if known < vocabulary:
        raise UserError(
            f"data.tokenizer: {vocabulary} tokens, and {FAMILY}/{model_type} has {known} embeddings; expected the "
            "tokenizer of the checkpoint in model.pretrained"
        )
    most = getattr(network.config, "max_position_embeddings", None)
    if most is not None and most < (length or 0):
        raise UserError(
            f"data.max_length: rows have {length} tokens, and {FAMILY}/{model_type} knows {most} positions "
            f"(max_position_embeddings); expected at most {most}"
        )
    return CausalLM(_with_adapters(network, lora))


def stored_options(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint, from its `config.json`, as options of a fresh network.

    Raises:
        UserError: if there is none.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"model.pretrained: {folder} has no readable config.json ({reason}); expected a folder that "
            "save_pretrained of transformers wrote"
        ) from error
    return dict(content)


def _fresh(library: Any, model_type: str, options: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in options.items() if key not in ("model_type", "architectures")}
    try:
        config = library.AutoConfig.for_model(model_type, **given)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.name: {FAMILY}/{model_type}: {reason[:200]}") from error
    except Exception as error:  # the checks of a configuration raise errors of several libraries
        raise UserError(f"model.options: {FAMILY}/{model_type} refuses them: {_first_line(error)}") from error
    stored = (
        "model_type" in options
    )  # the configuration of a checkpoint, which may have keys of other versions
    unknown = [] if stored else [key for key in given if key not in type(config)().to_dict()]
    if unknown:
        raise UserError(
            f"model.options: {FAMILY}/{model_type} has no {unknown[0]!r}; expected keys of its config"
        )
    try:
        return library.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise UserError(
            f"model.options: {FAMILY}/{model_type} cannot be built of them: {_first_line(error)}"
        ) from error


def _read(library: Any, model_type: str, options: Mapping[str, Any], folder: Path) -> Any:
    found = stored_options(folder).get("model_type")
    if found != model_type:
        raise UserError(
            f"model.name: {FAMILY}/{model_type}, and {folder} holds a {found}; expected {FAMILY}/{found}"
        )
    if options:
        raise UserError(
            f"model.options: {', '.join(options)} beside model.pretrained; expected {LORA}... alone, the "
            "checkpoint has its own configuration"
        )
    try:
        return library.AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
    except Exception as error:
        raise UserError(
            f"model.pretrained: {folder} cannot be read: {_first_line(error)}; expected a folder that "
            "save_pretrained of transformers wrote"
        ) from error


def _with_adapters(network: Any, options: Mapping[str, Any]) -> Any:
    if unknown := [key for key in options if key not in LORA_DEFAULTS]:
        raise UserError(f"model.options: {unknown[0]!r} is not known; expected {', '.join(LORA_DEFAULTS)}")
    how = {**LORA_DEFAULTS, **options}
    if how["lora_rank"] is None:
        if options.keys() - {"lora_rank"}:
            raise UserError("model.options.lora_rank: missing; expected it beside the others of LoRA")
        return network
    library = optional_library("peft", key="model.options.lora_rank", extra="llm")
    try:
        config = library.LoraConfig(
            r=how["lora_rank"],
            lora_alpha=how["lora_alpha"],
            lora_dropout=how["lora_dropout"],
            target_modules=how["lora_targets"],
            task_type="CAUSAL_LM",
        )
        return library.get_peft_model(network, config)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.options: LoRA refuses {dict(options)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
