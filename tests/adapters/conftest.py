"""What the adapters are held against: runs of the engine, each made once. Sums are in the same order everywhere, so
that weights can be compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from adapter_runs import EngineOf, EngineRun, Overrides, engine_run, tiny


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> EngineOf:
    """The engine's run of a tiny experiment with some keys set otherwise."""
    made: dict[str, EngineRun] = {}

    def run_of(overrides: Overrides | None = None) -> EngineRun:
        key = json.dumps(overrides, sort_keys=True)
        if key not in made:
            made[key] = engine_run(tiny(overrides), tmp_path_factory.mktemp("engine"))
        return made[key]

    return run_of


@pytest.fixture
def engine(engine_of: EngineOf) -> EngineRun:
    """The engine's run of the tiny experiment."""
    return engine_of()
