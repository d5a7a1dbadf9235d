"""One Ray session for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    here = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))  # the workers inherit it
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        resources={"tune_driver": 8},
    )
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)
