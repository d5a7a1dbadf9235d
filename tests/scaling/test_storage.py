"""Places by path and by address."""

from pathlib import Path

import pytest
import ray.train
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.cluster import connect
from raytrain_speedup.scaling.storage import exists, folder_of, inside, parent_and_name
from raytrain_speedup.settings import UserError


@pytest.mark.parametrize("parent", ["/runs", "s3://bucket/runs", "file:///runs", "gs://bucket/a/b"])
def test_inside_and_back(parent: str) -> None:
    assert inside(parent, "one") == f"{parent}/one"
    assert parent_and_name(inside(parent, "one")) == (parent, "one")


def test_what_follows_a_path_in_an_address_stays_behind_it() -> None:
    minio = "s3://bucket/runs/?endpoint_override=minio:9000"
    assert inside(minio, "one") == "s3://bucket/runs/one?endpoint_override=minio:9000"
    assert parent_and_name(inside(minio, "one")) == ("s3://bucket/runs?endpoint_override=minio:9000", "one")


def test_a_path_is_made_absolute_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside("runs", "one") == "runs/one"
    assert parent_and_name("runs/one") == (str(tmp_path / "runs"), "one")


def test_what_is_there(tmp_path: Path) -> None:
    for place in (str(tmp_path), tmp_path.as_uri()):
        assert exists(place)
        assert not exists(inside(place, "nothing"))
    with pytest.raises(UserError, match=r"s4://bucket/runs: no storage that can be reached .*; expected a"):
        connect(load_experiment("digits", {"scaling.storage": "s4://bucket/runs"}).scaling)


def test_a_checkpoint_elsewhere_is_copied(tmp_path: Path) -> None:
    (tmp_path / "store" / "checkpoint").mkdir(parents=True)
    (tmp_path / "store" / "checkpoint" / "run.pt").write_text("state")
    away = SubTreeFileSystem(str(tmp_path / "store"), LocalFileSystem())
    copy = folder_of(ray.train.Checkpoint("checkpoint", filesystem=away))
    assert (copy / "run.pt").read_text() == "state" and tmp_path not in copy.parents
    here = ray.train.Checkpoint(str(tmp_path / "store" / "checkpoint"))
    assert folder_of(here) == tmp_path / "store" / "checkpoint"
