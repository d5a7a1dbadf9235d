"""Tuning a causal language model on instructions: the loss of an answer, and its perplexity.

A sample is a prompt and an answer; only the tokens of the answer and of the end of the text are learnt. Its loss,
and its score for pruning, is the mean over them, so that a sample counts as one however long its answer is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.data.tokens import NO_LABEL
from raytrain_speedup.tasks.base import Direction, Losses, Model, Split, Task, TaskSettings


class CausalLMSettings(TaskSettings):
    kind: Literal["causal-lm"] = "causal-lm"

    def build(self) -> Task:
        return AnswerLoss()


class AnswerLoss(Task):
    """Rows of tokens (b, L) and labels (b, L) that are the tokens themselves, or `NO_LABEL`.

    `perplexity` is exp of the mean negative log-likelihood over all answer tokens of a split. `exact_match` is the
    percentage of answers that greedy decoding gives to the letter, their end included: that is so if and only if
    every token of the answer is the likeliest one after those before it, which one forward pass tells.
    """

    inputs = "sequences"
    targets = "answers"
    described = True
    metric, direction = "perplexity", "min"
    others: Mapping[str, Direction] = {"exact_match": "max"}

    def losses(self, model: Model, batch: Batch) -> Losses:
        found, known, _ = answer_tokens(model(batch["inputs"]), batch["target"])
        own = found.sum(1) / known.sum(1).clamp_min(1)
        return Losses(own, own)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        """Sums of the samples' losses, of the tokens' losses, of tokens, exact answers and samples."""
        found, known, right = answer_tokens(model(batch["inputs"]), batch["target"])
        found, tokens = found.double(), known.sum(1)
        exact = (right | ~known).all(1)
        sums = [(found.sum(1) / tokens.clamp_min(1)).sum(), found.sum(), tokens.sum(), exact.sum()]
        return torch.stack([*(value.double() for value in sums), found.new_tensor(float(len(found)))])

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


def answer_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token but the first of a row: its negative log-likelihood in nats, float32 (b, L - 1) and 0 where it
    has no label; whether it has one; and whether it was the likeliest.

    Args:
        logits: (b, L, V), of the token after each.
        labels: (b, L) int64.
    """
    before, label = logits[:, :-1].float(), labels[:, 1:]
    found = F.cross_entropy(before.transpose(1, 2), label, ignore_index=NO_LABEL, reduction="none")
    return found, label != NO_LABEL, before.argmax(2) == label
