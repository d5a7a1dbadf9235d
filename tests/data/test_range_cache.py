"""A cache gives what was put there and nothing else, takes no more than it may, and is shared."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from full_disk import fill, tiny_disk
from tiny_shards import CLASSES, FILES, loose, nested, pack, webdataset

from raytrain_speedup.data import SOURCES
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.range_cache import RangeCache
from raytrain_speedup.data.index.reading import ShardReader
from raytrain_speedup.data.index.shards import Index, open_index
from raytrain_speedup.settings import UserError

CONTENTS = list(FILES.values())


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_index(webdataset(tmp_path / "shards"), tmp_path / "index")


def read_all(index: Index, cache: RangeCache) -> int:
    """Bytes that came from the shards."""
    reader = ShardReader(index, cache)
    assert reader.read_many(range(18)) == CONTENTS
    return reader.bytes_read


def test_what_was_read_once_comes_from_the_cache(index: Index, tmp_path: Path) -> None:
    assert read_all(index, RangeCache(tmp_path / "cache", index, 10**9)) == sum(map(len, CONTENTS))
    cache = pickle.loads(pickle.dumps(RangeCache(tmp_path / "cache", index, 10**9)))
    assert read_all(index, cache) == 0
    for shard in (tmp_path / "shards").iterdir():
        shard.unlink()
    assert read_all(index, cache) == 0
    other = make_index(nested(tmp_path / "all.tar"), tmp_path / "other")
    assert read_all(other, RangeCache(tmp_path / "cache", other, 10**9)) > 0, "another index, other samples"
    assert read_all(index, cache) == 0


def test_it_takes_no_more_than_it_may(tmp_path: Path) -> None:
    large = pack(tmp_path / "x.tar", {f"n01/{n}.png": bytes([n]) * 10_000 for n in range(40)})
    index, limit = make_index(large, tmp_path / "index"), 100_000
    for _ in range(2):
        reader = ShardReader(index, RangeCache(tmp_path / "cache", index, limit))
        assert [data[:1] for data in reader.read_many(range(40))] == [bytes([n]) for n in range(40)]
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*/*/*"))
    assert 60_000 < taken <= limit
    assert 6 <= 40 - reader.bytes_read / 10_000 <= 10, "what was first read stays"


def taken(folder: Path) -> int:
    """Bytes on the disk of all samples in a cache."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*/*/*"))


def plain_index(folder: Path, name: str, images: int = 20) -> Index:
    """So many samples of 10,000 bytes, ten in a file."""
    for shard in range(images // 10):
        content = {f"n01/{n}.png": f"{name} {shard} {n}".encode() * 2000 for n in range(10)}
        pack(folder / name / f"{shard}.tar", {path: data[:10_000] for path, data in content.items()})
    return make_index(folder / name, folder / f"{name}.index")


def hits(index: Index, cache: RangeCache) -> int:
    """Samples that came from the cache, once all were asked for."""
    reader = ShardReader(index, cache)
    expected = ShardReader(index).read_many(range(len(index.rows)))
    assert reader.read_many(range(len(index.rows))) == expected
    return len(index.rows) - reader.bytes_read // 10_000


def test_indexes_that_nobody_uses_make_room(tmp_path: Path) -> None:
    indexes = [plain_index(tmp_path, name) for name in ("a", "b", "c")]
    folder, limit = tmp_path / "cache", 500_000  # two of them
    for number, index in enumerate(indexes[:2]):
        cache = RangeCache(folder, index, limit)
        assert [hits(index, cache) for _ in range(2)] == [0, 20]
        del cache
        os.utime(folder / index.digest, (number, number))
    assert hits(indexes[0], RangeCache(folder, indexes[0], limit)) == 20  # now b was not used for longest
    cache = RangeCache(folder, indexes[2], limit)
    assert [hits(indexes[2], cache) for _ in range(2)] == [0, 20]
    assert taken(folder) <= limit
    assert not (folder / indexes[1].digest).exists()
    assert hits(indexes[0], RangeCache(folder, indexes[0], limit)) == 20


def test_an_index_in_use_stays_and_a_smaller_limit_holds(tmp_path: Path) -> None:
    used, other = (plain_index(tmp_path, name, images=40) for name in ("used", "other"))
    folder = tmp_path / "cache"
    first = RangeCache(folder, used, 600_000)
    assert [hits(used, first) for _ in range(2)] == [0, 40]
    second = RangeCache(folder, other, 600_000)
    hits(other, second)
    assert hits(other, second) < 20 and hits(used, first) == 40, "nothing leaves what is in use"
    third = RangeCache(folder, used, 300_000)  # the other one is in use too
    assert taken(folder) <= 300_000
    assert 0 <= hits(used, first) < 40 and hits(used, third) < 40
    del second
    fourth = RangeCache(folder, used, 300_000)
    hits(used, fourth)
    assert hits(used, fourth) >= 20 and taken(folder) <= 300_000
    assert not (folder / other.digest).exists()


def _read_at_a_limit(index: Index, folder: Path, barrier, queue) -> None:
    barrier.wait(60)
    for _ in range(12):
        hits(index, RangeCache(folder, index, 300_000))
    queue.put(taken(folder) <= 300_000)


def test_processes_evict_each_others_indexes(tmp_path: Path) -> None:
    """Whatever leaves while others read or write, every sample is its own, and no more is taken than may be."""
    indexes = [plain_index(tmp_path, name) for name in ("a", "b", "c")]
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    arguments = [(indexes[number % 3], tmp_path / "cache", barrier, queue) for number in range(4)]
    readers = [context.Process(target=_read_at_a_limit, args=one) for one in arguments]
    for reader in readers:
        reader.start()
    assert [queue.get(timeout=60) for _ in readers] == [True] * 4
    for reader in readers:
        reader.join()
    hits(indexes[0], RangeCache(tmp_path / "cache", indexes[0], 300_000))
    assert hits(indexes[0], RangeCache(tmp_path / "cache", indexes[0], 300_000)) == 20


def test_damage_is_seen_and_read_again(index: Index, tmp_path: Path) -> None:
    """As a node leaves it that is lost: the sum was written, and the bytes were not."""
    cache = RangeCache(tmp_path / "cache", index, 10**9)
    read_all(index, cache)
    (first, second) = sorted((tmp_path / "cache").glob("*/0/*"))
    os.truncate(first, 1000)
    second.write_bytes(b"\0" * second.stat().st_size)
    assert read_all(index, cache) > 0
    assert read_all(index, cache) == 0


def test_a_full_disk_ends_nothing(index: Index, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        cache = RangeCache(disk / "cache", index, 10**9)
        filler = fill(disk)
        assert read_all(index, cache) > 0 and read_all(index, cache) > 0
        filler.unlink()
        cache = RangeCache(disk / "cache", index, 10**9)
        assert read_all(index, cache) > 0 and read_all(index, cache) == 0


def _read(index: Index, folder: Path, barrier, queue) -> None:
    cache = RangeCache(folder, index, 10**9)
    barrier.wait(60)
    queue.put(all(read_all(index, cache) >= 0 for _ in range(20)))


def test_processes_share_it(index: Index, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    arguments = (index, tmp_path / "cache", barrier, queue)
    readers = [context.Process(target=_read, args=arguments) for _ in range(3)]
    for reader in readers:
        reader.start()
    assert [queue.get(timeout=60) for _ in readers] == [True] * 3
    for reader in readers:
        reader.join()
    assert read_all(index, RangeCache(tmp_path / "cache", index, 10**9)) == 0


def test_settings_ask_for_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = nested(tmp_path / "all.tar")
    make_index(tar, tmp_path / "index")
    known = {"source": "index", "train": tmp_path / "index", "test": tmp_path / "index"}
    data = SOURCES["index"](**known, cache=tmp_path / "cache", window=16).read()
    assert data.train.encoded(3) == CONTENTS[3]
    tar.unlink()
    assert data.train.encoded(3) == CONTENTS[3]
    window = pickle.loads(pickle.dumps(data.train)).subset(np.array([0, 2, 6, 17])).window()
    assert window.samples == 16 and window.stretch.tolist() == [0, 1, 3, 8]
    (told,) = [line for line in caplog.messages if "data.window" in line]
    assert "2 neighbours are of 1.0 classes, where shuffled ones would be of 1.7" in told
    assert SOURCES["index"](**known).read().train.window() is None
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"data\.cache: .*file/cache: Not a directory; expected a folder"):
        SOURCES["index"](**known, cache=tmp_path / "file" / "cache").read()


def test_shuffled_shards_and_loose_files_are_no_matter_for_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = {f"{CLASSES[n % 3]}/{n}.png": CONTENTS[n] for n in range(18)}
    for place in (pack(tmp_path / "all.tar", mixed), loose(tmp_path / "loose")):
        make_index(place, tmp_path / "index")
        SOURCES["index"](source="index", train=tmp_path / "index", test=tmp_path / "index", window=48).read()
    assert not [line for line in caplog.messages if "data.window" in line]
    assert open_index(tmp_path / "index").digest
