"""Object storage gives the bytes that were put there, asks for no others, and outlives forks and failures."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_s3 import LoopbackS3
from tiny_shards import CLASSES, FILES, LAYOUTS, pack, webdataset

from raytrain_speedup import retry
from raytrain_speedup.config import load_experiment
from raytrain_speedup.data import build_loader, open_data
from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.index import object_store
from raytrain_speedup.data.index.checking import check_samples
from raytrain_speedup.data.index.indexed import IndexedSource
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.object_store import Stat, stat_object
from raytrain_speedup.data.index.packing import pack_images
from raytrain_speedup.data.index.range_file import SMALLEST_WINDOW, RangeFile
from raytrain_speedup.data.index.reading import GAP, LARGEST, ShardError, ShardReader, _bounds, _neighbours
from raytrain_speedup.data.index.shards import ROW, Index, open_index
from raytrain_speedup.data.index.writing import ShardRows, write_index
from raytrain_speedup.settings import UserError


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackS3]:
    with LoopbackS3().running() as server:
        yield server


@pytest.fixture
def s3(server: LoopbackS3) -> Iterator[LoopbackS3]:
    server.clear()
    yield server
    server.refuses = lambda environ: None


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stores are waited for a moment."""
    object_store.close()  # the helper knows the patience of when it was forked
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.3)
    yield
    object_store.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_indexed_and_read(layout: str, s3: LoopbackS3, tmp_path: Path) -> None:
    made = LAYOUTS[layout](tmp_path / "in")
    below = layout.replace(" ", "-")
    if made.is_file():
        s3.put(f"{below}/{made.name}", made.read_bytes())
    uri = f"{s3.uri}/{below}/{made.name}" if made.is_file() else s3.put_folder(made, below)
    index = make_index(uri, tmp_path / "index", processes=2)
    local = make_index(made, tmp_path / "local")
    assert index.class_names == local.class_names and np.array_equal(index.targets, local.targets)
    reader = ShardReader(index)
    assert reader.read_many(range(len(FILES))) == list(FILES.values())
    assert reader.read_many([17, 3, 3]) == [list(FILES.values())[row] for row in (17, 3, 3)]
    assert check_samples(index, processes=1) == []


def test_parquet_files_with_columns_of_other_names(s3: LoopbackS3, tmp_path: Path) -> None:
    """Indexed and packed from a store, two of four files."""
    (tmp_path / "in").mkdir()
    names = list(FILES)
    for part in range(4):
        chosen = names[part::4]
        table = pa.table({"img": [FILES[name] for name in chosen], "y": [name[:3] for name in chosen]})
        pq.write_table(table, tmp_path / "in" / f"{'ab'[part // 2]}-{part}.parquet")
    uri = s3.put_folder(tmp_path / "in", "columns")
    columns = {"image_column": "img", "label_column": "y"}
    index = make_index(f"{uri}/a-*", tmp_path / "index", processes=2, **columns)
    expected = [name for part in range(2) for name in names[part::4]]
    assert ShardReader(index).read_many(range(len(expected))) == [FILES[name] for name in expected]
    assert [index.class_names[target] for target in index.targets] == [name[:3] for name in expected]
    assert pack_images(f"{uri}/b-*", tmp_path / "out", **columns) == 18 - len(expected)


def webdataset_index(s3: LoopbackS3, tmp_path: Path) -> Index:
    uri = s3.put_folder(webdataset(tmp_path / "shards"), tmp_path.name)
    return make_index(uri, tmp_path / "index", processes=2)


def test_neighbours_are_one_request_and_others_are_not_read(s3: LoopbackS3, tmp_path: Path) -> None:
    """Samples 0, 1 and 5 of a tar file of ten, whose images are too long to be bridged."""
    images = {f"n01/{number}.jpg": bytes([number]) * (GAP + 1) for number in range(10)}
    s3.put(f"{tmp_path.name}/x.tar", pack(tmp_path / "x.tar", images).read_bytes())
    index = make_index(f"{s3.uri}/{tmp_path.name}", tmp_path / "index", processes=1)
    reader = ShardReader(index)
    s3.clear()
    assert reader.read_many([5, 0, 1]) == [images[f"n01/{number}.jpg"] for number in (5, 0, 1)]
    length, between = GAP + 1, 512 + 511  # a header, and what fills up the block before it
    assert sorted(sent for _, _, sent in s3.requests) == [length, 2 * length + between]
    assert s3.bytes_sent == reader.bytes_read


def test_requests_are_bounded() -> None:
    """Every row that has bytes is in one request, of one shard, and none is longer than it may be."""
    rows = np.zeros(5000, dtype=ROW)
    rows["length"] = np.random.default_rng(0).integers(0, 50_000, 5000)
    rows["shard"] = np.arange(5000) // 3000
    for shard in (0, 1):
        here = rows["shard"] == shard
        rows["offset"][here] = np.r_[0, np.cumsum(rows["length"][here])[:-1]]
    groups = list(_neighbours(rows))
    assert np.array_equal(np.sort(np.concatenate(groups)), np.flatnonzero(rows["length"]))
    spans = [_bounds(rows[group]) for group in groups]
    assert max(stop - start for start, stop in spans) < LARGEST + 50_000
    assert all(len(set(rows["shard"][group].tolist())) == 1 for group in groups)
    assert sum(stop - start for start, stop in spans) == rows["length"].sum()
    assert list(_neighbours(rows[:0])) == []


def test_headers_alone_are_read_of_a_tar_file(s3: LoopbackS3, tmp_path: Path) -> None:
    large = pack(tmp_path / "large.tar", {f"n01/{number}.jpg": b"x" * 200_000 for number in range(20)})
    small = pack(tmp_path / "small.tar", {f"n01/{number}.jpg": b"x" * 100 for number in range(1000)})
    for tar in (large, small):
        s3.put(f"{tmp_path.name}/{tar.name}", tar.read_bytes())
    s3.clear()
    make_index(f"{s3.uri}/{tmp_path.name}/large.tar", tmp_path / "index", processes=1)
    assert s3.bytes_sent <= 22 * SMALLEST_WINDOW < large.stat().st_size / 40
    s3.clear()
    index = make_index(f"{s3.uri}/{tmp_path.name}/small.tar", tmp_path / "index", processes=1)
    assert len(index.rows) == 1000
    assert len(s3.requests) < 15, "headers next to each other come by the window, which grows"
    assert s3.bytes_sent < 1.01 * small.stat().st_size, "and no byte comes twice"


def test_a_file_of_a_store_is_read_once(s3: LoopbackS3, tmp_path: Path) -> None:
    """Parts of any length one behind the other, of which a window holds the beginning already."""
    content = np.random.default_rng(0).bytes(3_000_000)
    s3.put(f"{tmp_path.name}/x.bin", content)
    root = f"{s3.uri}/{tmp_path.name}"
    file = io.BufferedReader(RangeFile(root, "x.bin", stat_object(root, "x.bin")), 1)
    s3.clear()
    found = [file.read(length) for length in (1, 5000, 100, 900_000, 7, 1_500_000, 900_000)]
    assert b"".join(found) == content
    assert s3.bytes_sent == len(content)
    file.seek(2_000_000)
    assert file.read(9) == content[2_000_000:2_000_009]


def test_an_object_that_has_changed_is_no_sample(s3: LoopbackS3, tmp_path: Path) -> None:
    index = webdataset_index(s3, tmp_path)
    first = tmp_path / "shards" / "shard-0.tar"
    source = IndexedSource(index, index.targets)
    s3.put(f"{tmp_path.name}/shard-0.tar", first.read_bytes()[::-1])
    with pytest.raises(
        CorruptSample, match=r"shard-0\.tar bytes \d+ to \d+: it was written anew after it was"
    ):
        source.encoded(0)
    s3.put(f"{tmp_path.name}/shard-0.tar", first.read_bytes()[:600])
    for row in (0, 5):  # one that begins before the end that is now, one behind it
        with pytest.raises(CorruptSample, match=r"it has 600 bytes and had \d+ when it was indexed"):
            source.encoded(row)
    s3.put(f"{tmp_path.name}/shard-0.tar", first.read_bytes())
    assert source.encoded(0) == next(iter(FILES.values()))
    shards = index.shards.copy()
    shards["name_end"] -= 1
    gone = Index(
        index.folder, index.root, "", index.class_names, index.rows, index.targets, shards, index.names
    )
    found = ShardReader(gone).read_many([0])
    assert isinstance(found[0], ShardError) and "there is no such object" in str(found[0])


def test_what_was_indexed_before_it_was_uploaded_is_read_from_there(s3: LoopbackS3, tmp_path: Path) -> None:
    shards = webdataset(tmp_path / "shards")
    make_index(shards, tmp_path / "index")
    head = json.loads((tmp_path / "index" / "index.json").read_text())
    root = s3.put_folder(shards, tmp_path.name)
    (tmp_path / "index" / "index.json").write_text(json.dumps(head | {"root": root}))
    reader = ShardReader(open_index(tmp_path / "index"))
    assert reader.read_many(range(len(FILES))) == list(FILES.values())


def test_a_single_tar_file_may_be_on_a_web_server(s3: LoopbackS3, tmp_path: Path) -> None:
    s3.put(f"{tmp_path.name}/x.tar", pack(tmp_path / "x.tar", FILES).read_bytes())
    index = make_index(f"{s3.web}/{tmp_path.name}/x.tar", tmp_path / "index", processes=1)
    assert ShardReader(index).read_many([0, 17]) == [list(FILES.values())[row] for row in (0, 17)]


@pytest.mark.timeout(60)
def test_loaders_are_forked_after_their_parent_has_read(s3: LoopbackS3, tmp_path: Path) -> None:
    """obstore's threads outlive no fork: a loader's first read would hang."""
    webdataset_index(s3, tmp_path)
    places = {f"data.{split}": tmp_path / "index" for split in ("train", "test")}
    keys = {"data.source": "index", "data.image_size": 8, "data.val_fraction": 0, "data.augment": "none"}
    settings = load_experiment("digits", keys | places | {"data.loader": "workers"}).data
    splits = open_data(settings, seed=0)
    assert splits.train.encoded(3) == list(FILES.values())[3]
    assert not object_store._clients, "a helper has read it: otherwise the loaders hang"
    loader = build_loader(splits, settings, device="cpu", seed=0)
    batches = list(loader.eval_batches("test", batch_size=5))
    assert [t for batch in batches for t in batch["target"].tolist()] == [
        CLASSES.index(name[:3]) for name in FILES
    ]
    loader.close()


def test_an_etag_is_the_same_with_quotes_and_without(
    s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's listings have none, its other answers do."""
    answer = s3._moto
    unquoted = re.compile(rb"<ETag>(&quot;|&#34;|\")(\w+)\1</ETag>")
    counted = []

    def listing_without(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body, count = unquoted.subn(rb"<ETag>\2</ETag>", b"".join(answer(environ, lambda *_: None)))
        counted.append(count)
        start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def chosen(environ: dict[str, Any], start_response: Any) -> Any:
        listed = "list-type=2" in environ.get("QUERY_STRING", "")
        return listing_without(environ, start_response) if listed else answer(environ, start_response)

    monkeypatch.setattr(s3, "_moto", chosen)
    index = webdataset_index(s3, tmp_path)
    assert sum(counted) == 2
    assert ShardReader(index).read_many([0, 9]) == [list(FILES.values())[row] for row in (0, 9)]


class Failing:
    """Answers so many requests of objects with an error."""

    def __init__(self, status: str, count: int) -> None:
        self.status, self.left = status, count

    def __call__(self, environ: dict[str, Any]) -> str | None:
        self.left -= 1
        return self.status if self.left >= 0 else None


def test_a_store_that_is_away_for_a_moment_is_waited_for(s3: LoopbackS3, tmp_path: Path) -> None:
    index = webdataset_index(s3, tmp_path)
    s3.clear()
    s3.refuses = Failing("503 Slow Down", 1)
    assert ShardReader(index).read_many([0, 9]) == [list(FILES.values())[row] for row in (0, 9)]
    assert len(s3.requests) == 3, "what was answered is not asked for again"


@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_away_is_a_line_that_names_the_object(s3: LoopbackS3, tmp_path: Path) -> None:
    """From this process, and from a loader's."""
    index = webdataset_index(s3, tmp_path)
    keys = {"data.source": "index", "data.image_size": 8, "data.val_fraction": 0, "data.loader": "workers"}
    places = {f"data.{split}": tmp_path / "index" for split in ("train", "test")}
    settings = load_experiment("digits", keys | places | {"data.num_workers": 1}).data
    loader = build_loader(open_data(settings, seed=0), settings, device="cpu", seed=0)
    s3.refuses = Failing("503 Slow Down", 1000)
    line = rf"^s3://data/{tmp_path.name}/shard-0\.tar: the store has not answered for 0 s \(.*503.*\); expected .*$"
    with pytest.raises(UserError, match=line) as told:
        ShardReader(index).read(0)
    with pytest.raises(UserError, match=line):
        list(loader.eval_batches("test", batch_size=2))
    assert len(str(told.value).splitlines()) == 1
    loader.close()


@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request"])
def test_a_store_that_refuses_is_not_waited_for(status: str, s3: LoopbackS3, tmp_path: Path) -> None:
    index = webdataset_index(s3, tmp_path)
    s3.refuses = Failing(status, 1000)
    s3.clear()
    found = ShardReader(index).read_many([0])
    assert isinstance(found[0], ShardError) and status[:3] in str(found[0]) and len(s3.requests) == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://nowhere/x", "s3://nowhere/x: .*404 Not Found.*expected a place"),
        ("s3://data/none.tar", r"s3://data/none\.tar: there is no such object"),
        ("s3://data/none", "neither tar or Parquet files with images nor class folders"),
        ("nothing://x/y", "nothing://x/y: .*; expected s3://, gs://, az://, http:// or https://"),
        ("s3://data/packed", r"x\.tar\.gz in s3://data/packed are compressed"),
        ("s3://data/flat", r"flat/x\.jpg is in no class folder"),
        ("s3://data/cut", r"cut/x\.tar is no whole tar file"),
    ],
)
def test_what_cannot_be_indexed_is_one_line(place: str, message: str, s3: LoopbackS3, tmp_path: Path) -> None:
    s3.put("packed/x.tar.gz", b"x")
    s3.put("flat/x.jpg", b"x")
    s3.put("cut/x.tar", pack(tmp_path / "x.tar", FILES).read_bytes()[:3000])
    with pytest.raises(UserError, match=message) as told:
        make_index(place, tmp_path / "index", processes=1)
    assert len(str(told.value).splitlines()) == 1 and not (tmp_path / "index").exists()


def test_empty_objects_are_not_asked_for(s3: LoopbackS3, tmp_path: Path) -> None:
    """No range of theirs is valid."""
    one = np.array([0])
    part = ShardRows(["x.jpg"], [Stat(0, 0, 0)], one, one, one, ["n01"], one)
    index = write_index(tmp_path / "index", s3.uri, [part])
    assert ShardReader(index).read(0) == b"" and not s3.requests
