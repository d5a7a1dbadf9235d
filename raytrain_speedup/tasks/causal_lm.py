"""Tuning a causal language model on instructions: the loss of an answer, and its perplexity.

A sample is a prompt and an answer; only the tokens of the answer and of the end of the text are learnt. Its loss,
and its score for pruning, is the mean over them, so that a sample counts as one however long its answer is.

Rows are padded to one length, and padding costs as much as text does. With `packing` a row holds several samples,
each of which sees itself alone and counts its positions from 0, so that losses are the same and rows are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.data.tokens import NO_LABEL
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, Task, TaskSettings


class CausalLMSettings(TaskSettings):
    kind: Literal["causal-lm"] = "causal-lm"
    packing: bool = Field(
        False, description="put several samples into a row, as many as fit: the same losses with less padding"
    )

    def build(self) -> Task:
        return AnswerLoss(packing=self.packing)


class AnswerLoss(Task):
    """Rows of tokens (b, L) and labels (b, L) that are the tokens themselves, or `NO_LABEL`.

    `perplexity` is exp of the mean negative log-likelihood over all answer tokens of a split. `exact_match` is the
    percentage of answers that greedy decoding gives to the letter, their end included: that is so if and only if
    every token of the answer is the likeliest one after those before it, which one forward pass tells.

    Args:
        packing: whether a row holds several samples.
    """

    inputs = "sequences"
    targets = "answers"
    described = True
    metric, direction = "perplexity", "min"
    others: Mapping[str, Direction] = {"exact_match": "max"}

    def __init__(self, *, packing: bool = False) -> None:
        self.packing = packing

    def losses(self, model: Model, batch: Batch) -> Losses:
        """A sample of which a curriculum shows no answer has the loss 0, and no score."""
        found = self._tokens(model, batch)
        count = found.known.sum(1)
        own = found.nats.sum(1) / count.clamp_min(1)
        return Losses(own, own.masked_fill(count == 0, torch.nan), rows=found.rows)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        """Sums of the samples' losses, of the tokens' losses, of tokens, exact answers and samples."""
        found = self._tokens(model, batch)
        nats, tokens = found.nats.double(), found.known.sum(1)
        exact = (found.right | ~found.known).all(1)
        sums = [(nats.sum(1) / tokens.clamp_min(1)).sum(), nats.sum(), tokens.sum(), exact.sum()]
        return torch.stack([*(value.double() for value in sums), nats.new_tensor(float(len(nats)))])

    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        loss, nats, tokens, exact, count = totals.tolist()
        return {
            "loss": loss / count,
            "perplexity": math.exp(nats / max(tokens, 1)),
            "exact_match": 100 * exact / count,
        }

    def features(self, model: Any, batch: Batch) -> Tensor:
        """The mean over a sample's tokens, its prompt among them, of their rows in the network's table of input
        embeddings: it needs no other network and no pass through this one."""
        ids, length = batch["inputs"], batch["length"].to(batch["inputs"].device)
        shown = (torch.arange(ids.shape[1], device=ids.device) < length[:, None]).float()
        embedded = F.embedding(ids, model.embeddings()).float()  # (b, L, d)
        return (embedded * shown.unsqueeze(2)).sum(1) / shown.sum(1, keepdim=True).clamp_min(1)

    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        ids = torch.zeros(count, *shape, dtype=torch.int64)
        return {"inputs": ids, "target": ids.clone()}

    def _tokens(self, model: Model, batch: Batch) -> AnswerTokens:
        ids = batch["inputs"]
        label = F.pad(batch["target"][:, 1:], (0, 1), value=NO_LABEL)  # of the token after each
        if not self.packing or "length" not in batch:  # a made-up batch is of whole rows
            return AnswerTokens.judged(model(ids), label, rows=len(ids))
        layout = Packed.of(batch["length"].tolist(), ids.shape[1], ids.device)
        logits = model(layout.row_of(ids, 0), layout.segments, layout.positions)
        return layout.unpacked(AnswerTokens.judged(logits, layout.row_of(label, NO_LABEL), rows=len(logits)))


class AnswerTokens(NamedTuple):
    """What a network makes of the token after each token."""

    nats: Tensor
    """(b, L) float32: its negative log-likelihood, 0 where it has no label."""
    known: Tensor
    """(b, L) bool: whether it has one."""
    right: Tensor
    """(b, L) bool: whether the label was the likeliest."""
    rows: int
    """How many rows the network was asked with."""

    @classmethod
    def judged(cls, logits: Tensor, label: Tensor, *, rows: int) -> AnswerTokens:
        """By logits (r, L, V) and labels (r, L) int64 of the token after each."""
        logits = logits.float()
        nats = F.cross_entropy(logits.transpose(1, 2), label, ignore_index=NO_LABEL, reduction="none")
        return cls(nats, label != NO_LABEL, logits.argmax(2) == label, rows)


class Packed(NamedTuple):
    """Where each token of b samples is in fewer rows of the same length L."""

    samples: int
    """b."""
    origin: Tensor
    """(T,) int64: places of the samples' tokens in (b, L), flat."""
    place: Tensor
    """(T,) int64: their places in the packed rows (r, L), flat."""
    segments: Tensor
    """(r, L) int64: the sample of each token, -1 of padding."""
    positions: Tensor
    """(r, L) int64: the position of each token in its sample."""

    @classmethod
    def of(cls, lengths: Sequence[int], size: int, device: torch.device) -> Packed:
        """The layout of samples of these lengths; made on the CPU, where the lengths are."""
        spots = first_fit(lengths, size)
        rows = 1 + max((row for row, _ in spots), default=0)
        length = torch.tensor(lengths)
        sample = torch.repeat_interleave(torch.arange(len(lengths)), length)  # (T,)
        position = torch.arange(len(sample)) - (length.cumsum(0) - length)[sample]
        begin = torch.tensor([row * size + start for row, start in spots])
        place = begin[sample] + position
        segments, positions = torch.full((rows * size,), -1), torch.zeros(rows * size, dtype=torch.int64)
        segments[place], positions[place] = sample, position
        parts = (sample * size + position, place, segments.view(rows, size), positions.view(rows, size))
        return cls(len(lengths), *(part.to(device, non_blocking=True) for part in parts))

    def row_of(self, values: Tensor, padding: int) -> Tensor:
        """(b, L) -> (r, L)."""
        packed = torch.full_like(self.segments, padding).flatten()
        packed[self.place] = values.flatten()[self.origin]
        return packed.view_as(self.segments)

    def unpacked(self, found: AnswerTokens) -> AnswerTokens:
        """(r, L) -> (b, L), of all that is told of tokens."""

        def back(values: Tensor) -> Tensor:
            flat = values.new_zeros(self.samples * values.shape[1])
            flat = flat.index_put((self.origin,), values.flatten()[self.place])
            return flat.view(self.samples, -1)

        return AnswerTokens(back(found.nats), back(found.known), back(found.right), found.rows)


def first_fit(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Row and first place of every sample: the longest first, each into the first row that has room (Johnson 1973:
    at most 11/9 of the fewest rows there can be, and 4 more).

    Args:
        lengths: in tokens, none above `size`.
        size: tokens of a row.
    """
    filled: list[int] = []
    spots = [(0, 0)] * len(lengths)
    for sample in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        row = next((row for row, end in enumerate(filled) if end + lengths[sample] <= size), len(filled))
        if row == len(filled):
            filled.append(0)
        spots[sample] = (row, filled[row])
        filled[row] += lengths[sample]
    return spots
