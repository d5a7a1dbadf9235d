"""Instructions and answers to them, as in Alpaca's JSON: `instruction`, `input` (may be empty) and `output`.

Taori et al., "Stanford Alpaca: An Instruction-following LLaMA model", 2023. A file is a JSON list of such objects,
or has one in every line; it is read whole, since pruning asks for samples by their position.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from raytrain_speedup.data.base import Dataset, DataSettings
from raytrain_speedup.data.tokens import ByteTokenizer, FolderTokenizer, Tokenizer, TokenSource, tokenized
from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup.data")

WIDTH = 8
"""Rows are as long as the longest sample, rounded up to a multiple of this: what kernels like."""

OF_TEXTS = {"source", "val_fraction", "test_fraction", "split_seed", "max_corrupt_fraction"}
"""Keys of `DataSettings` that are not about images."""

Template = Literal["alpaca", "plain"]


class Instruction(NamedTuple):
    """One sample, as a person reads it."""

    instruction: str
    input: str
    output: str
    kind: int = 0
    """Samples of a kind are in equal parts in the training and the validation split."""

    def prompt(self, template: Template) -> str:
        """What the model is given, in Alpaca's words or in as few as there can be."""
        if template == "plain":
            return f"{self.instruction} {self.input}\n" if self.input else f"{self.instruction}\n"
        told, given = "", ""
        if self.input:
            told, given = (
                ", paired with an input that provides further context",
                f"### Input:\n{self.input}\n\n",
            )
        return (
            f"Below is an instruction that describes a task{told}. Write a response that appropriately completes "
            f"the request.\n\n### Instruction:\n{self.instruction}\n\n{given}### Response:\n"
        )


class TextSettings(DataSettings):
    """Common part of the sources of instructions."""

    tokenizer: Path | None = Field(
        None,
        description="folder of a tokenizer, such as that of the checkpoint in model.pretrained (extra llm); "
        "default: a token for every byte",
    )
    max_length: int = Field(
        512, ge=8, description="tokens of a sample at most; what is longer loses the end of its answer"
    )
    template: Template = Field(
        "alpaca",
        description="how an instruction becomes a prompt: alpaca: in Alpaca's words; plain: as it is",
    )

    @model_validator(mode="after")
    def _has_no_pixels(self) -> Self:
        for key, field in DataSettings.model_fields.items():
            if key not in OF_TEXTS and (value := getattr(self, key)) != field.default:
                raise ValueError(
                    f"{key}: {value!r} is not allowed; expected it left out, texts have no pixels"
                )
        return self

    def samples(self) -> Mapping[str, Sequence[Instruction]]:
        """Those of the splits `train`, `test` and perhaps `val`.

        Raises:
            UserError: if a file cannot be read.
        """
        raise NotImplementedError

    def read(self) -> Dataset:
        tokenizer = ByteTokenizer() if self.tokenizer is None else FolderTokenizer(self.tokenizer)
        sources = {name: self._source(name, given, tokenizer) for name, given in self.samples().items()}
        longest = max(int(source.lengths.max(initial=1)) for source in sources.values())
        return Dataset(
            sources["train"],
            sources["test"],
            tuple(str(number) for number in range(tokenizer.size)),
            val=sources.get("val"),
            channels=1,
            sequence_length=-(-longest // WIDTH) * WIDTH,
        )

    def _source(self, name: str, samples: Sequence[Instruction], tokenizer: Tokenizer) -> TokenSource:
        kept, kinds = [], []
        for sample in samples:
            tokens = tokenized(sample.prompt(self.template), sample.output, tokenizer)
            if tokens.prompt < self.max_length:
                kept.append(tokens._replace(ids=tokens.ids[: self.max_length]))
                kinds.append(sample.kind)
        left_out = len(samples) - len(kept)
        if left_out > self.max_corrupt_fraction * len(samples):
            raise UserError(
                f"data.max_length: {self.max_length} tokens leave no room for an answer in {left_out} of "
                f"{len(samples)} samples of data.{name}; expected more, or a larger data.max_corrupt_fraction"
            )
        if left_out:
            log.warning("data.%s: %d samples are left out, whose prompts leave no room", name, left_out)
        return TokenSource.of(kept, kinds, name=f"{self.source} ({name})", pad=tokenizer.pad)


class AlpacaSettings(TextSettings):
    """Alpaca's JSON files, or such with one object in every line."""

    source: Literal["alpaca"] = "alpaca"
    train: Path = Field(description="JSON file of the training data")
    test: Path = Field(description="JSON file of the test data; read once, at the end")
    val: Path | None = Field(
        None, description="JSON file of the validation data; default: `val_fraction` of the training data"
    )

    def samples(self) -> Mapping[str, Sequence[Instruction]]:
        files = {"train": self.train, "test": self.test} | ({"val": self.val} if self.val else {})
        return {name: read_instructions(path, f"data.{name}") for name, path in files.items()}


def read_instructions(path: Path, key: str) -> list[Instruction]:
    """The samples of a JSON file.

    Args:
        key: the setting that names it, for messages.

    Raises:
        UserError: if the file cannot be read, or a sample lacks `instruction` or `output`.
    """
    expected = "expected a list of objects with instruction, input and output, or one in every line"
    try:
        text = path.read_text(encoding="utf-8")
        objects = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{key}: cannot read {path}: {reason}; {expected}") from error
    return [_instruction(content, f"{key}: {path} sample {number}") for number, content in enumerate(objects)]


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _instruction(content: Any, where: str) -> Instruction:
    found = content if isinstance(content, Mapping) else {}
    values = {name: found.get(name, "") for name in ("instruction", "input", "output")}
    wrong = [name for name, value in values.items() if not isinstance(value, str)]
    wrong += [name for name in ("instruction", "output") if not values[name]]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} is {found.get(wrong[0])!r}; expected a text that is not empty")
    return Instruction(**values)
