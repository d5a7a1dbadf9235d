"""Google's and Azure's clients do what S3's does: index, train on what the plans show, and notice what has changed.

Google's XML API is S3's dialect as far as it is used here (a list of version 2, ranges), and moto speaks it; of
Google's own answers this shows nothing. Azure's is Azurite's, where that is installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_runs import CPU, Diary, run
from loopback_azure import LoopbackAzure
from loopback_s3 import LoopbackS3
from test_indexed_run import PRUNED, SAMPLES, experiment, of_noise

from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.index import object_store
from raytrain_speedup.data.index.indexed import IndexedSource
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.reading import ShardReader

EPOCHS = 2
HEADERS = 2048
"""Bytes between a sample and its neighbour in a tar file, at most."""


class LoopbackGoogle(LoopbackS3):
    """Its XML API, as far as it is S3's."""

    uri = LoopbackS3.uri.replace("s3://", "gs://")


@pytest.fixture(scope="module", params=["gs", "az"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoopbackGoogle | LoopbackAzure]:
    if request.param == "az":
        if shutil.which("azurite-blob") is None:
            pytest.skip("there is no azurite-blob (`npm install azurite`)")
        with LoopbackAzure().running() as azure:
            yield azure
        return
    google = LoopbackGoogle()
    account = tmp_path_factory.mktemp("google") / "account.json"
    anyone = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    account.write_text(json.dumps(anyone | {"gcs_base_url": google.endpoint}))
    with pytest.MonkeyPatch.context() as patch, google.running():
        patch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
        yield google
        object_store.close()


def test_what_is_pruned_is_not_sent(store: LoopbackGoogle | LoopbackAzure, tmp_path: Path) -> None:
    """Beside its plans a run reads some samples to begin with, the same ones with pruning and without."""
    shards = store.put_folder(of_noise(tmp_path), tmp_path.name)
    index = make_index(shards, tmp_path / "train.index", processes=1)
    assert index.root == shards and len(index.rows) == SAMPLES
    whole = EPOCHS * int(index.rows["length"].sum())
    sent, read = {}, {}
    for method in ({"pruning.method": "none"}, PRUNED | {"pruning.saving": 0.3}):
        name = method["pruning.method"]
        store.clear()
        read[name] = run(
            experiment(index, **method, **{"train.epochs": EPOCHS}), Diary(tmp_path / name), device=CPU
        )["bytes_read"]
        sent[name] = store.bytes_sent
        assert sent[name] >= read[name], "the run counts no more than the store"
    assert whole <= read["none"] < whole + HEADERS * EPOCHS * SAMPLES
    assert read["random"] == pytest.approx(0.7 * whole, rel=0.05)
    saved = read["none"] - read["random"]
    assert sent["none"] - sent["random"] == pytest.approx(saved, abs=HEADERS * SAMPLES)


def test_what_a_listing_says_of_an_object_is_what_its_answers_say(
    store: LoopbackGoogle | LoopbackAzure, tmp_path: Path
) -> None:
    """Loose files are indexed by the listing alone; Azure's has no quotes around its ETags, its answers do."""
    of_noise(tmp_path)
    index = make_index(store.put_folder(tmp_path / "loose", tmp_path.name), tmp_path / "index", processes=1)
    found = ShardReader(index).read_many(range(SAMPLES))
    files = {int(path.stem): path.read_bytes() for path in (tmp_path / "loose").rglob("*.png")}
    assert found == [files[int(Path(index.name(row)).stem)] for row in range(SAMPLES)]


def test_an_object_that_has_changed_is_no_sample(
    store: LoopbackGoogle | LoopbackAzure, tmp_path: Path
) -> None:
    index = make_index(store.put_folder(of_noise(tmp_path), tmp_path.name), tmp_path / "index", processes=1)
    first = min((tmp_path / "shards").iterdir())
    source = IndexedSource(index, index.targets)
    store.put(f"{tmp_path.name}/{first.name}", first.read_bytes()[::-1])
    with pytest.raises(CorruptSample, match=r"\.tar bytes \d+ to \d+: it was written anew after it was"):
        source.encoded(0)
    store.put(f"{tmp_path.name}/{first.name}", first.read_bytes()[:600])
    with pytest.raises(CorruptSample, match=r"it has 600 bytes and had \d+ when it was indexed"):
        source.encoded(5)
