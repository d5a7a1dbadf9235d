"""One Ray session for the whole folder: two CPUs, and a dashboard, whose state API frees the resources of
worker groups that were killed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raytrain_speedup.scaling.cluster import start_local

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    # Ray's processes import the package by name, from wherever pytest was started
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # workers that yield to every other process, Ray's default, would take minutes on a busy machine
    os.environ |= {"RAY_worker_niceness": "0"}
    start_local(num_cpus=2, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
