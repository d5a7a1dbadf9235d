"""Places by path and by address."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback_s3 import LoopbackS3

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint
from raytrain_speedup.engine.checkpoints.store import MANIFEST
from raytrain_speedup.scaling.cluster import connect
from raytrain_speedup.scaling.launch import launch
from raytrain_speedup.scaling.storage import exists, folder_name, inside, parent_and_name
from raytrain_speedup.scaling.uri_store import UriStore, store_of
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


def test_a_checkpoint_behind_a_uri_is_there_with_its_manifest(tmp_path: Path) -> None:
    """As an object store has it: nothing is renamed, and a copy that broke off is no checkpoint."""
    store = UriStore(tmp_path.as_uri())
    assert store.newest() is None and store.next_number() == 0
    for rank in (0, 1):
        folder = store.begin(0)
        (folder / f"rank-{rank}.pt").write_text(f"of {rank}")
        if rank == 0:
            (folder / "run.pt").write_text("state")
        store.hand_over(folder, 0)
        assert not folder.exists()
    assert store.newest() is None, "not committed yet"
    assert store.commit(0, 2) == store.newest() == "checkpoint-000000"
    with store.fetched("checkpoint-000000", 1) as copy:
        assert (copy / "run.pt").read_text() == "state" and tmp_path not in copy.parents
        assert {path.name for path in copy.iterdir()} >= {"run.pt", "rank-0.pt", "rank-1.pt"}
    assert not copy.exists()
    with store.fetched("checkpoint-000000", 0) as copy:
        assert not (copy / "rank-1.pt").exists()

    folder = store.begin(1)
    (folder / "run.pt").write_text("half")
    store.hand_over(folder, 1)
    assert store.newest() == "checkpoint-000000"
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000"]


@pytest.mark.parametrize("uri", [False, True])
def test_storage_that_cannot_be_written_is_a_line(uri: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=r"file/run: cannot be written \(.*\); expected a folder") as error:
        store_of((file / "run").as_uri() if uri else file / "run").create()
    assert "\n" not in str(error.value)


def test_a_uri_that_leads_nowhere_is_a_line_where_a_run_is_launched() -> None:
    experiment = load_experiment("digits", {"scaling.storage": "s4://bucket/runs"})
    with pytest.raises(UserError, match=r"s4://bucket/runs: no storage that can be reached"):
        launch(experiment, "s4://bucket/runs/one", lambda kind, metrics: None)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", "s3://x"])
def test_a_run_stays_inside_its_storage(name: str, tmp_path: Path) -> None:
    folder = Path(inside(tmp_path, folder_name(name)))
    assert folder.resolve().parent == tmp_path


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_for_a_moment_costs_no_checkpoint() -> None:
    """Away while a rank's file is brought, while the manifest is written, and while the newest is looked for."""
    with LoopbackS3().running() as s3:
        store = UriStore(f"{s3.uri}/run")
        store.create()
        for number, what in enumerate(("rank-0.pt", MANIFEST)):
            with away(s3, what):
                folder = store.begin(number)
                Checkpoint(folder, {"rank-0.pt": {"random": 7}, "run.pt": {"epoch": number}}).write()
                store.hand_over(folder, number)
                assert store.commit(number, 1) == f"checkpoint-00000{number}"
        with away(s3, MANIFEST):
            assert store.newest() == "checkpoint-000001"
        assert store.next_number() == 2 and len(store._names()) == 2


@contextmanager
def away(s3: LoopbackS3, what: str, *, seconds: float = 10.0) -> Iterator[None]:
    """Answers 503 to whatever is about a file, until so long after the first time; pyarrow tries for 6 s itself."""
    asked: list[float] = []

    def refuses(environ: dict[str, Any]) -> str | None:
        if not environ["PATH_INFO"].endswith(what):
            return None
        asked.append(time.monotonic())
        return "503 Slow Down" if asked[-1] - asked[0] < seconds else None

    s3.refuses = refuses
    try:
        yield
    finally:
        s3.refuses = lambda environ: None
    assert len(asked) > 1, "it was away"
