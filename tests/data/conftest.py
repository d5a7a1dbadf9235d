"""Tiny data sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import picture, write_parquet

from raytrain_speedup.data import Loader, Step, build_loader, open_data
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.methods.curriculum.base import FULL, Stage

CLASSES = 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def parquet(tmp_path: Path) -> dict[str, Path]:
    """train (60 PNGs in row groups of 10) and test (15), three classes in turn."""
    return {
        name: write_parquet(
            tmp_path / f"{name}.parquet",
            [picture(i) for i in range(rows)],
            [i % CLASSES for i in range(rows)],
        )
        for name, rows in (("train", 60), ("test", 15))
    }


@pytest.fixture
def load(parquet: dict[str, Path]) -> Iterator[Callable[..., Loader]]:
    """Builds a loader over the 60 PNGs of 12 x 12; keywords go to the settings, `options` to the loader."""
    loaders: list[Loader] = []

    def build(
        kind: str = "device", workers: int = 0, options: dict[str, Any] | None = None, **settings: Any
    ) -> Loader:
        chosen = ParquetSettings(
            **parquet, **{"val_fraction": 0.2, "loader": kind, "num_workers": workers} | settings
        )
        data = open_data(chosen, seed=0)
        loaders.append(build_loader(data, chosen, **{"device": "cpu", "seed": 7} | (options or {})))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train (24) and test (6) as folders of JPEGs of several sizes."""
    for split, count in (("train", 8), ("test", 2)):
        for name in ("ant", "bee", "cow"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                data = picture(i, size=(40 + 4 * i, 30), kind="JPEG")
                (tmp_path / split / name / f"{i}.jpg").write_bytes(data)
    return tmp_path


@pytest.fixture
def steps_of() -> Callable[..., list[Step]]:
    """Steps over all of n samples in a fixed shuffled order, each with its own weight."""

    def build(n: int, batch: int, stage: Stage = FULL) -> list[Step]:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        return [
            Step(number, index, 1 + index.float() / 8, len(index), 0.0, stage)
            for number, index in enumerate(order.split(batch))
        ]

    return build
