"""Texts as rows of tokens: two tokenizers, and the source of samples that are a prompt and an answer to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from raytrain_speedup.data.base import Source
from raytrain_speedup.optional import optional_library
from raytrain_speedup.settings import UserError

NO_LABEL = -100
"""The label of a token that is not learnt: one of the prompt, or of the padding (PyTorch's and transformers')."""


class Tokens(NamedTuple):
    """One sample."""

    ids: list[int]
    """The prompt, the answer, and the end of the text."""
    prompt: int
    """How many of them are the prompt."""


class Tokenizer(ABC):
    """Turns texts into the numbers of tokens.

    Attributes:
        size: tokens that it knows.
        begin: token before a text; None where texts have none.
        end: token after a text.
        pad: token that fills up a row; no label is one.
    """

    size: int
    begin: int | None
    end: int
    pad: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those that stand before and after it."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text again."""


class ByteTokenizer(Tokenizer):
    """A token for every byte of UTF-8, as in ByT5 (Xue et al., TACL 2022, https://arxiv.org/abs/2105.13626): it
    needs no file, and no text has a token that it does not know."""

    size, begin, end, pad = 258, None, 256, 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(each for each in ids if each < self.end).decode(errors="replace")


class FolderTokenizer(Tokenizer):
    """The tokenizer of a checkpoint's folder, by `transformers`.

    Args:
        folder: with the files that `save_pretrained` writes; nothing is fetched, and no code of the folder is run.

    Raises:
        UserError: if `transformers` is missing, or the folder holds no tokenizer that has an end of text.
    """

    def __init__(self, folder: Path) -> None:
        library = optional_library("transformers", key="data.tokenizer", extra="llm")
        expected = "expected a folder that tokenizer.save_pretrained wrote"
        if not folder.is_dir():
            raise UserError(f"data.tokenizer: {folder} is no folder; {expected}")
        try:
            self._own = library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (
            Exception
        ) as error:  # whatever the many kinds of tokenizers raise for files that are not theirs
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"data.tokenizer: {folder} cannot be read: {reason}; {expected}") from error
        if self._own.eos_token_id is None:
            raise UserError(f"data.tokenizer: {folder} has no end of text; expected an eos_token")
        self.size = len(self._own)
        self.begin = self._own.bos_token_id
        self.end = self._own.eos_token_id
        self.pad = self.end if self._own.pad_token_id is None else self._own.pad_token_id

    def encode(self, text: str) -> list[int]:
        return list(self._own(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._own.decode(list(ids), skip_special_tokens=True))


def tokenized(prompt: str, answer: str, tokenizer: Tokenizer) -> Tokens:
    """A sample: the prompt is cut into tokens by itself, as it is where a model is asked."""
    asked = [*([] if tokenizer.begin is None else [tokenizer.begin]), *tokenizer.encode(prompt)]
    return Tokens([*asked, *tokenizer.encode(answer), tokenizer.end], len(asked))


class TokenSource(Source):
    """Samples in memory, one after another in an array: a prompt, and an answer that is learnt.

    Args:
        ids: (T,) int32, the tokens of all samples.
        ends: (N,) int64, where each sample ends in them.
        prompts: (N,) int64, how many tokens of each sample are its prompt.
        targets: (N,) int64, kinds of samples that a validation split has in equal parts; zeros for one kind.
        name: for messages.
        pad: token that fills up a row.
    """

    def __init__(
        self,
        ids: np.ndarray,
        ends: np.ndarray,
        prompts: np.ndarray,
        targets: np.ndarray,
        *,
        name: str,
        pad: int,
    ) -> None:
        self.ids, self.ends, self.prompts, self.targets = ids, ends, prompts, targets
        self.name, self.pad = name, pad

    @classmethod
    def of(cls, samples: Sequence[Tokens], targets: Sequence[int], *, name: str, pad: int) -> Self:
        """The source of these samples."""
        return cls(
            np.array([each for sample in samples for each in sample.ids], dtype=np.int32),
            np.cumsum([len(sample.ids) for sample in samples], dtype=np.int64),
            np.array([sample.prompt for sample in samples], dtype=np.int64),
            np.array(targets, dtype=np.int64),
            name=name,
            pad=pad,
        )

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of each sample."""
        return np.diff(self.ends, prepend=0)

    def decode(self, index: int) -> np.ndarray:
        """The tokens of a sample, (length,) int32."""
        end = self.ends[index]
        return self.ids[end - self.lengths[index] : end]

    def locate(self, index: int) -> str:
        return f"{self.name} sample {index}"

    def subset(self, positions: np.ndarray) -> TokenSource:
        """Some of the samples, renumbered from 0."""
        lengths = self.lengths
        starts = self.ends - lengths
        ids = [self.ids[starts[each] : self.ends[each]] for each in positions.tolist()]
        return TokenSource(
            np.concatenate([*ids, self.ids[:0]]),
            np.cumsum(lengths[positions]),
            self.prompts[positions],
            self.targets[positions],
            name=self.name,
            pad=self.pad,
        )

    def content(self) -> bytes:
        return b"".join(np.ascontiguousarray(part).tobytes() for part in (self.ids, self.ends, self.prompts))

    def rows(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """All samples as rows of `length` tokens, those that are longer cut at their end.

        Returns:
            ids (N, length) int64, filled up with `pad`, and labels (N, length) int64: the token itself where it is
            of an answer, else `NO_LABEL`.
        """
        ids = np.full((len(self), length), self.pad, dtype=np.int64)
        labels = np.full((len(self), length), NO_LABEL, dtype=np.int64)
        for index, prompt in enumerate(self.prompts.tolist()):
            shown = self.decode(index)[:length]
            ids[index, : len(shown)] = shown
            labels[index, prompt : len(shown)] = shown[prompt:]
        return ids, labels
