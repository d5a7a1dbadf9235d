"""What processes of one machine do, tasks of a cluster do too: the same index, the same faults, the same errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))

from tiny_shards import nested, webdataset

from raytrain_speedup.data.index.checking import check_samples
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.scaling.ray_tasks import RayTasks
from raytrain_speedup.settings import UserError

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize("layout", ["imagenet", "webdataset"])
def test_tasks_make_the_index_of_processes(layout: str, tmp_path: Path) -> None:
    made = nested(tmp_path / "all.tar") if layout == "imagenet" else webdataset(tmp_path / "in")
    index = make_index(made, tmp_path / "index", pool=RayTasks())
    local = make_index(made, tmp_path / "local", processes=2)
    assert index.class_names == local.class_names and np.array_equal(index.shards, local.shards)
    assert np.array_equal(index.rows, local.rows)


def test_tasks_find_the_faults_that_processes_find(tmp_path: Path) -> None:
    """Of samples in several tar files, one cut off after it was indexed."""
    made = webdataset(tmp_path / "in")
    index = make_index(made, tmp_path / "index", processes=1)
    shard = sorted(made.glob("*.tar"))[-1]
    shard.write_bytes(b"\0" * shard.stat().st_size)
    found = check_samples(index, processes=1)
    broken = index.rows["shard"] == len(index.shards) - 1
    assert {fault.row for fault in found if fault.kind == "unreadable"} >= set(
        np.flatnonzero(broken).tolist()
    )
    assert check_samples(index, pool=RayTasks()) == found


def test_a_mistake_is_told_as_itself(tmp_path: Path) -> None:
    made = webdataset(tmp_path / "in")
    shard = sorted(made.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(UserError) as error:
        make_index(made, tmp_path / "index", pool=RayTasks())
    assert type(error.value) is UserError and shard.name in str(error.value)


def test_calls_run_elsewhere_after_their_initializer() -> None:
    def begin() -> None:
        os.environ["BEGUN"] = "1"

    def process(number: int) -> int:
        assert os.environ.pop("BEGUN") == "1"
        return os.getpid()

    assert os.getpid() not in set(RayTasks(begin).map(process, range(3)))
