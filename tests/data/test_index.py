"""An index gives the bytes that tarfile and the file system give, for any layout, and says what is wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_shards import CLASSES, FILES, LAYOUTS, loose, nested, pack, webdataset

from raytrain_speedup.config import load_experiment
from raytrain_speedup.data import SOURCES, build_loader, open_data
from raytrain_speedup.data.base import CorruptSample, Source
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.reading import ShardReader
from raytrain_speedup.data.index.shards import open_index
from raytrain_speedup.data.index.writing import ShardRows, write_index
from raytrain_speedup.methods.pruning import InfoBatch, shard
from raytrain_speedup.settings import UserError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_sample_is_read_with_its_class(layout: str, tmp_path: Path) -> None:
    index = make_index(LAYOUTS[layout](tmp_path), tmp_path / "index", processes=1)
    expected = ("0", "1", "2") if layout == "webdataset" else CLASSES
    assert index.class_names == expected
    reader = ShardReader(index)
    assert [reader.read(row) for row in range(len(index.rows))] == list(FILES.values())
    assert index.targets.tolist() == [CLASSES.index(name[:3]) for name in FILES]
    read, own = reader.bytes_read, sum(map(len, FILES.values()))
    assert read == own if layout != "hugging face" else read > own
    assert [path.name for path in tmp_path.glob("*index*")] == ["index"], "nothing is left lying about"


def test_a_file_of_labels_goes_before_everything(tmp_path: Path) -> None:
    flat = pack(tmp_path / "val.tar", {Path(name).name.replace(".", f"-{name[:3]}."): b"x" for name in FILES})
    with pytest.raises(UserError, match=r"0-n01\.png is in no folder"):
        make_index(flat, tmp_path / "index")
    (tmp_path / "val.txt").write_text("\n".join(f"val/{n}-{c}.png {c}x" for c in CLASSES for n in range(6)))
    index = make_index(flat, tmp_path / "index", labels=tmp_path / "val.txt")
    assert index.class_names == tuple(f"{name}x" for name in CLASSES) and len(index.rows) == 18


def test_a_class_is_looked_for_in_order(tmp_path: Path) -> None:
    """A file of labels, the inner tar file, the neighbour `.cls`, the folder."""
    inner = pack(tmp_path / "inner.tar", {"f/a.png": b"x", "f/a.cls": b"c", "f/b.png": b"x"}).read_bytes()
    both = pack(tmp_path / "all.tar", {"n07.tar": inner, "g/d.png": b"x", "g/d.cls": b"5", "g/e.png": b"x"})
    (tmp_path / "labels.txt").write_text("b.png told")
    index = make_index(both, tmp_path / "index", labels=tmp_path / "labels.txt")
    assert [index.class_names[target] for target in index.targets] == ["n07", "told", "5", "g"]


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    files = {name: b"x" for number in (2, 10, 9) for name in (f"{number}/a.png", f"{number}/b.png")}
    index = make_index(pack(tmp_path / "x.tar", files), tmp_path / "index")
    assert index.class_names == ("2", "9", "10") and index.targets.tolist() == [0, 0, 2, 2, 1, 1]


def settings(tmp_path: Path, **more: object) -> Source:
    known = {"source": "index", "train": tmp_path / "index", "test": tmp_path / "index", "image_size": 8}
    return SOURCES["index"](**(known | more)).read()


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_loaders_take_mapped_tables_without_a_word(loader: str, tmp_path: Path) -> None:
    make_index(loose(tmp_path / "loose"), tmp_path / "index")
    known = {"source": "index", "train": tmp_path / "index", "test": tmp_path / "index", "image_size": 8}
    chosen = SOURCES["index"](**known, val_fraction=0, augment="none", loader=loader, num_workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = build_loader(open_data(chosen, seed=0), chosen, device="cpu", seed=0)
        (batch,) = batches.eval_batches("test", batch_size=18)
    assert batch["target"].tolist() == [CLASSES.index(name[:3]) for name in FILES]
    batch["target"] += 1  # it is the batch's own
    assert open_index(tmp_path / "index").targets.max() == 2
    batches.close()


def test_the_test_split_speaks_of_the_classes_of_the_training_data(tmp_path: Path) -> None:
    make_index(loose(tmp_path / "loose"), tmp_path / "index")
    fewer = {name: content for name, content in FILES.items() if not name.startswith("n01")}
    make_index(pack(tmp_path / "test.tar", fewer), tmp_path / "test.index")
    found = settings(tmp_path, test=tmp_path / "test.index")
    assert set(found.test.targets.tolist()) == {1, 2} and found.class_names == CLASSES
    make_index(pack(tmp_path / "other.tar", {"n99/a.png": b"x"}), tmp_path / "other.index")
    with pytest.raises(UserError, match=r"data\.test: .* has the class 'n99', which data\.train has not"):
        settings(tmp_path, test=tmp_path / "other.index")


def test_it_trains_as_the_folder_does(tmp_path: Path) -> None:
    """The same samples in the same order, in another process as in this one."""
    make_index(nested(tmp_path / "all.tar"), tmp_path / "index")
    for split in ("train", "test"):
        loose(tmp_path / "folder" / split)
    keys = {"data.image_size": 8, "data.val_fraction": 0.3}
    folder = load_experiment(
        "digits", {"data.source": "imagefolder", "data.root": tmp_path / "folder", **keys}
    )
    places = {f"data.{split}": tmp_path / "index" for split in ("train", "test")}
    indexed = load_experiment("digits", {"data.source": "index", **places, **keys})
    one, other = (open_data(experiment.data, seed=0) for experiment in (folder, indexed))
    for split in ("train", "val", "test"):
        expected, found = getattr(one, split), getattr(other, split)
        assert np.array_equal(expected.targets, found.targets) and len(found)
        sent = pickle.dumps(found)
        there = pickle.loads(sent)
        assert np.array_equal(expected.targets, there.targets)
        for row in range(len(found)):
            assert np.array_equal(expected.decode(row), found.decode(row))
            assert np.array_equal(expected.decode(row), there.decode(row))


def _read_all(reader: ShardReader, queue: multiprocessing.Queue) -> None:
    queue.put([reader.read(row) for row in range(len(FILES))])


def test_a_fork_opens_files_of_its_own(tmp_path: Path) -> None:
    reader = ShardReader(make_index(webdataset(tmp_path / "shards"), tmp_path / "index"))
    reader.read(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_all, args=(reader, queue))
    process.start()
    assert queue.get(timeout=60) == list(FILES.values())
    process.join()


def test_a_file_is_indexed_whatever_is_beside_it(tmp_path: Path) -> None:
    """In a home, with links that lead nowhere or in circles."""
    tar = pack(tmp_path / "all.tar", FILES)
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    assert len(make_index(tar, tmp_path / "index").rows) == 18
    assert len(make_index(tmp_path / "a*.tar", tmp_path / "index").rows) == 18


def test_a_shard_that_has_changed_is_no_sample(tmp_path: Path) -> None:
    tar = pack(tmp_path / "all.tar", FILES)
    make_index(tar, tmp_path / "index")
    with tar.open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(CorruptSample, match=r"all\.tar bytes 512 to \d+: it has \d+ bytes and had \d+"):
        settings(tmp_path).train.decode(0)
    tar.unlink()
    with pytest.raises(CorruptSample, match="No such file"):
        settings(tmp_path).train.decode(0)


def test_a_shard_that_was_written_anew_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a copy of the same bytes, so it is read; of the same length, it need not be."""
    shards = webdataset(tmp_path / "shards")
    reader = ShardReader(make_index(shards, tmp_path / "index"))
    assert reader.read(0) == next(iter(FILES.values())) and not caplog.messages
    for tar in shards.iterdir():
        os.utime(tar, (1, 1))
    reader = ShardReader(open_index(tmp_path / "index"))
    assert [reader.read(row) for row in range(len(FILES))] == list(FILES.values())
    (told,) = caplog.messages
    assert "was written after it was indexed" in told and "index it again" in told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: folder / "none",
            "there is no .*none; expected tar files, Parquet files or class folders",
        ),
        (lambda folder: folder, "neither tar or Parquet files with images nor class folders"),
        (lambda folder: _written(folder / "x.tar.gz", b""), r"x\.tar\.gz in .* are compressed"),
        (
            lambda folder: _written(folder / "x.parquet", b"").parent,
            r"x\.parquet is not a whole Parquet file",
        ),
        (lambda folder: _written(folder / "x.zip", b""), r"x\.zip is no \.tar or \.parquet file"),
        (lambda folder: _written(folder / "x.tar", b"y" * 2000), r"x\.tar is no whole tar file"),
        (lambda folder: _cut(nested(folder / "x.tar")), r"x\.tar is no whole tar file"),
        (lambda folder: _with_cut_inside(folder / "x.tar"), r"x\.tar is no whole tar file: n02 is cut off"),
        (lambda folder: _linked(folder, to=folder), "the link .* leads back to a folder that it is in"),
        (lambda folder: _linked(folder / "n01", to=folder / "none"), r"x\.png cannot be read: No such file"),
        (lambda folder: _written(folder / "image.png", b"").parent, r"image\.png is in no class folder"),
    ],
)
def test_what_cannot_be_indexed_is_one_line(make, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(UserError, match=f"data index: .*{message}"):
        make_index(make(folder), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _linked(folder: Path, *, to: Path) -> Path:
    """A folder with a class in which a link leads to a place."""
    (folder / "n01").mkdir(parents=True)
    (folder / "n01" / "x.png").symlink_to(to)
    return folder


def _cut(path: Path) -> Path:
    os.truncate(path, path.stat().st_size // 2)
    return path


def _with_cut_inside(path: Path) -> Path:
    """A whole tar file, and in it one that ends in the middle of an image."""
    whole = pack(path.parent / "n01.tar.part", {"a.png": b"x" * 5000}).read_bytes()
    return pack(path, {"n01.tar": whole, "n02.tar": whole[: 512 + 2000], "n03.tar": whole})


def test_nothing_but_an_index_is_replaced(tmp_path: Path) -> None:
    """Least of all what is indexed."""
    tar = pack(tmp_path / "in" / "all.tar", FILES)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    refused = {
        tar.parent: r"in: it holds all\.tar, which no index does; expected a new folder, or an index to replace",
        tmp_path: "it holds home, in, link, which no index does",
        tmp_path / "home": r"home: it holds thesis\.txt, which no index does",
        tmp_path / "link": r"link: it holds all\.tar, which no index does",
        tar: r"all\.tar: Not a directory; expected a new folder",
        tar / "index": r"index: .*; expected a new folder",
        Path("/proc/index"): "/proc/index: .*; expected a new folder",
    }
    for place, message in refused.items():
        with pytest.raises(UserError, match=f"data index: -o .*{message}"):
            make_index(tar, place)
    assert tar.exists() and (tmp_path / "home" / "thesis.txt").exists()
    (tmp_path / "index").mkdir()
    for _ in range(2):
        assert len(make_index(tar, tmp_path / "index").rows) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "in", "index", "link"]


def test_what_is_left_out_stays_so_where_it_is_the_same_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = pack(tmp_path / "all.tar", FILES)
    index = make_index(tar, tmp_path / "index")
    (index.folder / "quarantine.csv").write_text("row,kind\n4,unreadable\n")
    os.utime(tar, (1, 1))
    assert make_index(tar, tmp_path / "index").quarantined().tolist() == [4] and not caplog.messages
    pack(tar, dict(list(FILES.items())[1:]))
    assert make_index(tar, tmp_path / "index").quarantined().tolist() == []
    (told,) = caplog.messages
    assert "nothing is left out any more" in told and "quarantine.former.csv" in told
    assert "4,unreadable" in (index.folder / "quarantine.former.csv").read_text()
    make_index(tar, tmp_path / "index")  # which has the former list in it


def test_two_million_rows_are_opened_and_shared_in_no_time(tmp_path: Path) -> None:
    """A guard against reading or copying the tables: at 14.2 million, `tests/benchmarks/indexed.py` measures."""
    count, shards = 2_000_000, 2000
    part = ShardRows(
        [f"{shard}.tar" for shard in range(shards)],
        [Stat(1 << 40, 0, 0)] * shards,
        np.arange(count) // (count // shards),
        np.arange(count) * 1000,
        np.full(count, 900),
        [str(label) for label in range(shards)],
        np.arange(count) % shards,
    )
    write_index(tmp_path / "index", str(tmp_path), [part])
    began = time.perf_counter()
    source = settings(tmp_path).train
    rows = np.random.default_rng(0).integers(0, count, 256)
    assert source.locate(int(rows[0])).endswith(
        f"{rows[0] // 1000}.tar bytes {rows[0] * 1000} to {rows[0] * 1000 + 900}"
    )
    assert len([source.locate(row) for row in rows.tolist()]) == 256
    assert time.perf_counter() - began < 1
    began = time.perf_counter()
    plan = InfoBatch(count, 4).plan(1)
    shares = [list(shard(plan, batch_size=6400, rank=rank, world=64)) for rank in range(64)]
    assert time.perf_counter() - began < 10
    sizes = [sum(len(index) for index, _ in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == plan.kept
    assert len(np.unique(torch.cat([index for share in shares for index, _ in share]))) == plan.kept


def test_what_is_no_index_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.train: .* is no index; expected a folder that `speedup data index"
    ):
        settings(tmp_path)
    make_index(pack(tmp_path / "all.tar", FILES), tmp_path / "index")
    os.truncate(tmp_path / "index" / "rows.npy", 100)
    with pytest.raises(UserError, match=r"data\.train: the index .* is damaged"):
        settings(tmp_path)
    (tmp_path / "index" / "index.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="of version 99; expected 2"):
        settings(tmp_path)
    for head in ("[]", '{"version": 2}', '{"version": 2, "root": 5, "digest": "", "class_names": []}'):
        (tmp_path / "index" / "index.json").write_text(head)
        with pytest.raises(UserError, match=r"index\.json has no '\w+' as an index has it; expected"):
            settings(tmp_path)
