"""What several rooms' tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes on two cores; torch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("COLUMNS", None)  # pytest's; tests say how wide their terminal is

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
SLOW = "SPEEDUP_SLOW"
"""The variable with which tests of a minute or more run too; what they show, quicker ones show in part."""

LONGEST = ("tests/scaling/", "tests/engine/", "tests/adapters/", "tests/test_")
"""Rooms whose files take longest, beside those that use Ray."""

# A busy machine is no failure, and a test that fails here fails everywhere.
hypothesis.settings.register_profile("speedup", deadline=None, derandomize=True)
hypothesis.settings.load_profile("speedup")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"slow: takes a minute or more; runs where {SLOW} is set")


def pytest_collection_finish() -> None:
    """The garbage collector leaves alone what was imported: a look at all of it takes as long as a small test."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not os.environ.get(SLOW):
        pytest.skip(f"slow; runs where {SLOW} is set")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes each takes the next file, so what takes long begins early, or one of them ends alone."""

    def order(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return (
            -1
            if _uses_ray(file)
            else next((i for i, room in enumerate(LONGEST) if room in file), len(LONGEST))
        )

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes (`-n 2`) one runs all that uses Ray, in one session; of the rest a file stays together,
    whose fixtures are then made once."""
    from xdist.scheduler import LoadScopeScheduling

    class OneForRay(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _uses_ray(file) else file

    config.option.loadscopereorder = False  # by number of tests
    return OneForRay(config, log)


@cache
def _uses_ray(file: str) -> bool:
    return "ray_session" in (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository, or the one that SPEEDUP_DATA names."""
    beside = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("SPEEDUP_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder} (or where SPEEDUP_DATA says)")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray session for all tests: two CPUs, and a dashboard, whose state API frees the resources of worker
    groups that were killed."""
    import ray

    from raytrain_speedup.scaling.cluster import start_local

    before = dict(os.environ)
    # Ray's processes import the package and the tests' trainables by name, from wherever pytest was started.
    here = [str(ROOT), str(ROOT / "tests" / "tuning"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start_local(num_cpus=2, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)
