"""All samples of a text as rows of tokens in the memory of the training device: a batch is a gather.

Fine-tuning sets are small beside the network: Alpaca's 52,000 samples of 512 tokens take .4 GB. It fulfils
`BatchSource`; a stage of a curriculum shows the last `Stage.size` tokens of each sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raytrain_speedup.data.batch import AnySplit, Batch, Step
from raytrain_speedup.data.loader import rank_positions
from raytrain_speedup.data.splits import Splits
from raytrain_speedup.data.tokens import TokenSource
from raytrain_speedup.data.unreadable import Skipped


class TokenRows(NamedTuple):
    """One split on the device."""

    ids: Tensor
    """(N, L) int64."""
    labels: Tensor
    """(N, L) int64, `NO_LABEL` where a token is not of an answer."""
    lengths: Tensor
    """(N,) int64 on the CPU."""


class TokenLoader:
    """Batches of token rows; see `BatchSource`.

    Args:
        splits: of `TokenSource`s.
        device: where batches are wanted.
        rank, world: this worker among all; evaluation splits are shared out by them.

    Attributes:
        name: what brings the batches, for people.
        size: tokens of a row at full length.
    """

    name = "token rows"

    def __init__(self, splits: Splits, *, device: torch.device | str, rank: int = 0, world: int = 1) -> None:
        self.splits, self.size = splits, splits.image_size
        self.device, self.rank, self.world = torch.device(device), rank, world
        self._resident: dict[str, TokenRows] = {}

    def train_batches(self, steps: Sequence[Step], *, epoch: int) -> Iterator[Batch]:
        for step in steps:
            yield self._batch("train", step.index, step.weight, step.stage.size or self.size)

    def eval_batches(self, split: AnySplit, *, batch_size: int, most: int | None = None) -> Iterator[Batch]:
        size = len(self._source(split))
        for index in rank_positions(size, self.rank, self.world, batch_size=batch_size, most=most):
            yield self._batch(split, index, torch.ones(len(index)), self.size)

    def _batch(self, split: str, index: Tensor, weight: Tensor, size: int) -> Batch:
        """`length` stays on the CPU: what is packed into how many rows follows from it, and is not waited for."""
        rows, there = self._rows(split), index.to(self.device)
        length = rows.lengths[index]
        ids, labels = rows.ids[there], rows.labels[there]
        if size < self.size:
            start = (length - size).clamp(min=0).to(self.device, non_blocking=True)
            shown = start[:, None] + torch.arange(size, device=self.device)  # (b, size)
            ids, labels = ids.gather(1, shown), labels.gather(1, shown)
        return {
            "inputs": ids,
            "target": labels,
            "length": length.clamp(max=size),
            "index": there,
            "weight": weight.to(self.device),
        }

    def _rows(self, split: str) -> TokenRows:
        if split not in self._resident:
            source = self._source(split)
            ids, labels = (torch.from_numpy(part).to(self.device) for part in source.rows(self.size))
            self._resident[split] = TokenRows(ids, labels, torch.from_numpy(source.lengths))
        return self._resident[split]

    def _source(self, split: str) -> TokenSource:
        source = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]
        assert isinstance(source, TokenSource)
        return source

    @property
    def has_val(self) -> bool:
        return len(self.splits.val) > 0

    @property
    def skipped(self) -> Mapping[str, Skipped]:
        """None: what cannot be read was left out when the data were opened."""
        return {}

    def prepare(self, epoch: int) -> Iterator[None]:
        return iter(())

    def unnormalised(self, x: Tensor) -> Tensor:
        """Tokens are shown as they are."""
        return x

    def images(self) -> dict[str, bytes]:
        return {}

    def metrics(self) -> dict[str, float]:
        return {}

    def spent_flops(self) -> float:
        return 0.0

    def bytes_taken(self) -> int | None:
        """They are in memory."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a batch is a function of its step alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def join(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...
