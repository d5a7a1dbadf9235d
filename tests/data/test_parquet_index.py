"""An index of Parquet files gives what pyarrow reads of them, whoever wrote them, and reads what it says."""

from __future__ import annotations

import io
import os
import re
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import CLASSES, FILES, hugging_face, loose, pack, parquet
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.data import SOURCES
from raytrain_speedup.data.base import Source
from raytrain_speedup.data.index import parquet_scan
from raytrain_speedup.data.index.checking import check_samples
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.object_store import Stat
from raytrain_speedup.data.index.packing import pack_images
from raytrain_speedup.data.index.parquet_pages import Chunk, _Page, hybrid, places
from raytrain_speedup.data.index.parquet_scan import ParquetJob, _chunks
from raytrain_speedup.data.index.range_cache import RangeCache
from raytrain_speedup.data.index.reading import ShardError, ShardReader
from raytrain_speedup.data.index.shards import PACKED, open_index
from raytrain_speedup.data.index.snappy import Damaged, Stream, restore
from raytrain_speedup.data.index.writing import ShardRows, write_index
from raytrain_speedup.settings import UserError

# Bytes that compress and bytes that do not, long and short, again and again.
contents = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda seed, size: np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes(),
        st.integers(0, 3),
        st.integers(0, 3000),
    ),
    st.builds(lambda part, times: part * times, st.binary(max_size=9), st.integers(0, 900)),
)


def read_by_places(file: io.BytesIO, column: str) -> list[bytes]:
    """Every value by its place alone; no bytes where there is none."""
    found: list[bytes] = []
    content = file.getvalue()
    for chunk in _chunks(pq.ParquetFile(file), column):
        for offset, stored, packed in places(file, chunk):
            size, start, length, literal, tail = packed.tolist()
            data = content[offset : offset + stored]
            if literal:
                data = restore(data, size, literal, tail)[start : start + length]
            else:
                assert stored == length == size and not start
            found.append(data)
    return found


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.none() | contents, max_size=30),
    compression=st.sampled_from(["none", "snappy"]),
    dictionary=st.booleans(),
    page=st.sampled_from([1, 500, 1 << 20]),
    version=st.sampled_from(["1.0", "2.0"]),
    group=st.integers(1, 40),
    struct=st.booleans(),
    required=st.booleans(),
)
def test_every_value_is_where_its_place_says(
    values: list[bytes | None],
    compression: str,
    dictionary: bool,
    page: int,
    version: str,
    group: int,
    struct: bool,
    required: bool,
) -> None:
    if required:
        values = [value or b"" for value in values]
    kind = pa.large_binary() if len(values) % 2 else pa.binary()
    column = pa.array(values, kind)
    if struct:
        column = pa.StructArray.from_arrays([column, pa.array(["x"] * len(values))], ["bytes", "path"])
    schema = pa.schema([pa.field("other", pa.int64()), pa.field("image", column.type, nullable=not required)])
    table = pa.Table.from_arrays([pa.array(range(len(values)), pa.int64()), column], schema=schema)
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        compression=compression,
        use_dictionary=dictionary,
        data_page_size=page,
        dictionary_pagesize_limit=2000,  # then it goes over to plain values in the middle of a row group
        data_page_version=version,
        row_group_size=group,
        write_batch_size=3,
    )
    assert read_by_places(file, "image") == [value or b"" for value in values]


@settings(max_examples=200, deadline=None)
@given(st.lists(contents.filter(bool), min_size=1, max_size=60), st.integers(0, 1 << 30))
def test_every_part_of_a_snappy_stream_restores_alone(parts: list[bytes], seed: int) -> None:
    whole = b"".join(parts)
    stream = pa.compress(whole, "snappy", asbytes=True)
    elements = Stream(stream)
    assert elements.size == len(whole)
    generator = np.random.default_rng(seed)
    for start in generator.integers(0, len(whole), 5).tolist():
        length = int(generator.integers(1, len(whole) - start + 1))
        cut = elements.cut(start, length)
        stored = stream[cut.offset : cut.offset + cut.stored]
        found = restore(stored, cut.size, cut.literal, cut.tail)
        assert found[cut.start : cut.start + length] == whole[start : start + length]


def test_what_other_writers_of_snappy_may_do() -> None:
    """Copies with a long way back, beyond the 64 KiB in which the usual writer stays, of every length of a tag; and
    literals whose length takes three bytes."""
    literal = np.random.default_rng(0).integers(0, 256, 70_000, dtype=np.uint8).tobytes()
    stream = b"".join(
        [
            b"\xaa\xa3\x04",  # 70,058 bytes
            bytes([62 << 2]) + (len(literal) - 1).to_bytes(3, "little") + literal,
            bytes([0b010_000_01, 30]),
            bytes([(34 - 1) << 2 | 2]) + (0x8000).to_bytes(2, "little"),
            bytes([(20 - 1) << 2 | 3]) + (70_000).to_bytes(4, "little"),
        ]
    )
    whole = literal + literal[-542:][:4]
    whole += whole[-0x8000:][:34]
    whole += whole[-70_000:][:20]
    assert pa.decompress(stream, len(whole), "snappy", asbytes=True) == whole
    elements = Stream(stream)
    for start, length in (
        (69_990, 12),
        (70_001, 3),
        (70_010, 20),
        (70_030, 15),
        (70_040, 18),
        (0, len(whole)),
    ):
        cut = elements.cut(start, length)
        found = restore(stream[cut.offset :][: cut.stored], cut.size, cut.literal, cut.tail)
        assert found[cut.start : cut.start + length] == whole[start : start + length]
    assert elements.cut(69_990, 10) == (69_997, 10, 10, 0, 10, 0), "a literal needs nothing but its bytes"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x05",
        b"\x05\x10ab",
        b"\x02\x01\x05",
        b"\x05\x10abcdeabc",
        b"\x09\x10abcde\x0e\0\0",
        b"\x09\x10abcde\x0e\x09\x00",
    ],
)
def test_what_is_no_snappy_stream_is_said(damage: bytes) -> None:
    with pytest.raises(Damaged):
        Stream(damage)
    with pytest.raises(Damaged):
        restore(b"\x09" * 9, 50, 2, 0)


def test_runs_of_no_bits_and_runs_that_end_early() -> None:
    assert hybrid(b"\x07", 0, 20).tolist() == [0] * 20
    assert hybrid(bytes([0b11, 0b10001000, 0b11000110, 0b11111010]), 3, 8).tolist() == list(range(8))
    assert hybrid(bytes([6, 5, 4, 6]), 3, 5).tolist() == [5, 5, 5, 6, 6]
    for cut in (b"", b"\x03", b"\x00", b"\x06\x05"):
        with pytest.raises(IndexError):
            hybrid(cut, 3, 8)


# --- real images ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(shared_data: Path) -> pa.Table:
    return pq.read_table(shared_data / "imagenet-sample.parquet")


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_photographs_are_read_by_their_own_bytes(
    compression: str, images: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """160 photographs in two row groups: two of five are not read."""
    pq.write_table(images, tmp_path / "a.parquet", row_group_size=100, compression=compression)
    index = make_index(tmp_path / "a.parquet", tmp_path / "index", label_column="wnid")
    reader = ShardReader(index)
    expected = images.column("image").to_pylist()
    names = images.column("wnid").to_pylist()
    assert [index.class_names[target] for target in index.targets] == names
    kept = [row for row in range(160) if row % 5 < 3]
    assert reader.read_many(kept) == [expected[row] for row in kept]
    own = sum(len(expected[row]) for row in kept)
    assert 0.99 * own <= reader.bytes_read <= (1.0 if compression == "none" else 1.01) * own
    assert (index.packed is None) == (compression == "none") and not caplog.messages


def test_images_that_compress_are_read_with_others_and_it_is_said(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pq.read_table(shared_data / "cifar10-test.parquet").slice(0, 500)
    pq.write_table(table, tmp_path / "a.parquet", compression="snappy")
    reader = ShardReader(make_index(tmp_path / "a.parquet", tmp_path / "index"))
    images = table.column("image").to_pylist()
    assert reader.read_many(range(500)) == images
    (told,) = caplog.messages
    assert "a sample is read with" in told and "`speedup data pack`" in told
    assert reader.bytes_read > 4 * sum(map(len, images))


# --- files of a user -----------------------------------------------------------------------------------------


def source(index: Path, **more: object) -> Source:
    known = {"source": "index", "train": index, "test": index, "image_size": 8, "val_fraction": 0}
    return SOURCES["index"](**(known | more)).read()


@pytest.mark.parametrize("make", [parquet, hugging_face])
def test_it_is_what_the_source_parquet_reads(make, tmp_path: Path) -> None:
    """Class numbers too: those of a published list of names are not sorted."""
    folder = make(tmp_path / "in")
    if make is hugging_face:
        for file in folder.iterdir():
            table = pq.read_table(file)
            said = table.schema.metadata[b"huggingface"].replace(b'["n01", "n02", "n10"]', b'["z", "y", "x"]')
            pq.write_table(table.replace_schema_metadata({"huggingface": said}), file)
    make_index(folder, tmp_path / "index")
    known = {"source": "parquet", "train": folder, "test": folder, "image_size": 8, "val_fraction": 0}
    expected, found = SOURCES["parquet"](**known).read(), source(tmp_path / "index")
    assert expected.class_names == found.class_names == (("z", "y", "x") if make is hugging_face else CLASSES)
    assert np.array_equal(expected.train.targets, found.train.targets)
    for row in range(len(FILES)):
        assert expected.train.encoded(row) == found.train.encoded(row)
        assert np.array_equal(expected.train.decode(row), found.train.decode(row))


def test_a_star_chooses_among_splits_in_one_folder(tmp_path: Path) -> None:
    """As Hugging Face's sets come: train-*.parquet beside test-*.parquet."""
    folder = hugging_face(tmp_path / "in")
    (folder / "train-1.parquet").rename(folder / "test-0.parquet")
    assert len(make_index(folder / "train-*.parquet", tmp_path / "index").rows) == 7
    assert len(make_index(folder / "test-*", tmp_path / "index").rows) == 11
    assert pack_images(str(folder / "test-*.parquet"), tmp_path / "out") == 11
    known = {
        "source": "parquet",
        "train": folder / "train-*",
        "test": folder / "test-*.parquet",
        "image_size": 8,
    }
    found = SOURCES["parquet"](**known).read()
    assert (len(found.train), len(found.test)) == (7, 11)
    pack(folder / "x.tar", FILES)
    assert len(make_index(folder / "*.tar", tmp_path / "index").rows) == 18
    assert len(make_index(folder, tmp_path / "index").rows) == 18, "Parquet beside tar files is about them"
    with pytest.raises(UserError, match="no tar or Parquet file in .* is called none-"):
        make_index(folder / "none-*", tmp_path / "index")
    with pytest.raises(UserError, match=r"holds no \.parquet file called val-\*"):
        SOURCES["parquet"](**(known | {"train": folder / "val-*"})).read()


def test_a_table_beside_class_folders_is_not_what_is_indexed(tmp_path: Path) -> None:
    folder = loose(tmp_path / "loose")
    pq.write_table(pa.table({"x": [1]}), folder / "metadata.parquet")
    assert len(make_index(folder, tmp_path / "index").rows) == 18
    (tmp_path / "in" / "folder.parquet").mkdir(parents=True)
    pq.write_table(_table(), tmp_path / "in" / "a.parquet")
    assert len(make_index(tmp_path / "in" / "*", tmp_path / "index").rows) == 18


def test_a_column_by_its_name_and_not_by_its_path(tmp_path: Path) -> None:
    """`image.bytes` may be a column beside `image`."""
    wrong = pa.table({"image.bytes": [b"wrong"] * 18, **{n: _table().column(n) for n in ("image", "label")}})
    pq.write_table(wrong, tmp_path / "a.parquet")
    reader = ShardReader(make_index(tmp_path / "a.parquet", tmp_path / "index"))
    assert reader.read_many(range(18)) == list(FILES.values())


def test_classes_of_one_name_stay_apart_and_files_of_other_names_are_refused(tmp_path: Path) -> None:
    """ImageNet has two classes called crane."""
    for part, names in (("a", "crane,dog,crane"), ("b", "dog,crane,crane")):
        table = pa.table({"image": list(FILES.values())[:3], "label": [2, 1, 0]})
        pq.write_table(table.replace_schema_metadata({"classes": names}), tmp_path / f"{part}.parquet")
    index = make_index(tmp_path / "a.parquet", tmp_path / "index")
    assert index.class_names == ("crane (0)", "dog", "crane (2)") and index.targets.tolist() == [2, 1, 0]
    with pytest.raises(
        UserError, match=r"different names of classes .* \(3, the first 'crane'; 3, the first"
    ):
        make_index(tmp_path / "*.parquet", tmp_path / "index")


def test_a_row_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Where parts of one stream overlap, their bytes would be those of several."""
    make_index(hugging_face(tmp_path / "in"), tmp_path / "index")
    assert re.search(r"train-1\.parquet row 2 bytes \d+ to \d+$", source(tmp_path / "index").train.locate(9))


def test_a_missing_image_is_a_sample_that_cannot_be_read(tmp_path: Path) -> None:
    rows = [{"bytes": content} for content in FILES.values()]
    rows[3] = {"bytes": None}
    rows[8] = None
    pq.write_table(pa.table({"img": rows, "y": [name[:3] for name in FILES]}), tmp_path / "a.parquet")
    index = make_index(tmp_path / "a.parquet", tmp_path / "index", image_column="img", label_column="y")
    assert [fault.row for fault in check_samples(index, processes=1)] == [3, 8]
    found = ShardReader(index).read_many(range(18))
    assert found == [b"" if row in (3, 8) else content for row, content in enumerate(FILES.values())]


def test_a_cache_and_a_part_of_the_index_know_how_samples_are_packed(tmp_path: Path) -> None:
    index = make_index(hugging_face(tmp_path / "in"), tmp_path / "index")
    for _ in range(2):
        reader = ShardReader(open_index(tmp_path / "index"), RangeCache(tmp_path / "cache", index, 1 << 20))
        assert reader.read_many(range(18)) == list(FILES.values())
    assert reader.bytes_read == 0, "the second time all of it came from the cache"
    part = index.part(np.array([17, 2])).as_index()
    assert ShardReader(part).read_many([0, 1]) == [list(FILES.values())[row] for row in (17, 2)]
    other = make_index(parquet(tmp_path / "other"), tmp_path / "other.index")
    assert index.digest != other.digest and other.packed is None


@pytest.mark.parametrize("damaged", ["literal", "tail"])
def test_a_page_that_was_damaged_later_is_no_sample(damaged: str, tmp_path: Path) -> None:
    """Behind the first literal, or in the tag of the last one, which says more bytes then than there are."""
    values = [np.random.default_rng(0).bytes(300) + b"A" * 50 + b"xyz", np.random.default_rng(1).bytes(200)]
    table = pa.table({"image": values, "label": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="snappy")
    index = make_index(tmp_path / "a.parquet", tmp_path / "index")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[int(index.rows[0]["offset"]) + int(index.packed[0][damaged])] = 0xFC
    (tmp_path / "a.parquet").write_bytes(content)
    found, other = ShardReader(index).read_many([0, 1])
    assert isinstance(found, ShardError) and "does not decompress" in str(found)
    assert other == values[1]


def _table(**columns: list) -> pa.Table:
    return pa.table({"image": list(FILES.values()), "label": [name[:3] for name in FILES], **columns})


@pytest.mark.parametrize(
    ("table", "options", "keys", "message"),
    [
        (
            _table(),
            {},
            {"image_column": "img"},
            r"--image-column: .*a\.parquet has no column 'img'; expected one of",
        ),
        (
            _table(),
            {},
            {"image_column": "label"},
            "--image-column: column 'label' of .* holds string; expected image",
        ),
        (
            _table(),
            {},
            {"label_column": "image"},
            "--label-column: column 'image' of .* holds binary; expected whole",
        ),
        (_table(label=[None, *["x"] * 17]), {}, {}, "row 0 has no label in column 'label'"),
        (_table(label=[5, -1, *[0] * 16]), {}, {}, "row 1 has the label -1; expected one of the 6 classes"),
        (
            _table(),
            {},
            {"labels": Path(os.devnull)},
            "--labels: .* has classes in a column; expected --label-column",
        ),
        (
            _table(),
            {"compression": "zstd"},
            {},
            r"column 'image' of .*: ZSTD gives a page only as a whole \(18 images in .*`speedup data pack`",
        ),
        (
            _table().replace_schema_metadata({"classes": "a"}),
            {},
            {},
            "row 0 has the label 'n01'; expected one of",
        ),
        (
            _table(**{"image": [{"bytes": b"x"}] * 18, "image.bytes": [b"y"] * 18}),
            {},
            {},
            r"the file has 2 columns of the path 'image\.bytes'",
        ),
        (
            _table(),
            {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}},
            {},
            "column 'image' of .*: a page has encoding 6 .*`speedup data pack`",
        ),
    ],
)
def test_what_cannot_be_indexed_is_one_line(
    table: pa.Table, options: dict, keys: dict, message: str, tmp_path: Path
) -> None:
    pq.write_table(table, tmp_path / "a.parquet", **options)
    with pytest.raises(UserError, match=message):
        make_index(tmp_path / "a.parquet", tmp_path / "index", **keys)
    assert not (tmp_path / "index").exists()


def _die(job: ParquetJob) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for want of memory, or as Arrow ends one that meets an encrypted column."""
    monkeypatch.setattr(parquet_scan, "_scan", _die)
    with pytest.raises(
        UserError, match=r"data index: a process that read files died; .* 2 of them \(--processes\)"
    ):
        make_index(parquet(tmp_path / "in"), tmp_path / "index", processes=2)


def test_pages_that_are_cut_off_are_said(tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(_table(), file, compression="snappy")
    (chunk,) = _chunks(pq.ParquetFile(file), "image")
    whole = file.getvalue()
    assert len(places(io.BytesIO(whole), chunk)) == 18
    for stop in range(chunk.start, chunk.stop, 97):
        with pytest.raises(Damaged):
            places(io.BytesIO(whole[:stop]), chunk)


def test_damage_in_the_header_of_a_page_is_said() -> None:
    """Any byte of it, as any other: another page is read, or damage is told, and soon."""
    file = io.BytesIO()
    pq.write_table(_table(), file, compression="snappy", use_dictionary=False)
    (chunk,) = _chunks(pq.ParquetFile(file), "image")
    whole, told = bytearray(file.getvalue()), 0
    for at in range(chunk.start, chunk.start + 25):
        for value in range(0, 256, 3):
            damaged = whole.copy()
            damaged[at] = value
            try:
                places(io.BytesIO(damaged), chunk)
            except Damaged:
                told += 1
    assert told > 500
    loop = bytes([0x15, 2, 0x15, 0, 0x15, 15, 0])  # a page that ends where its header began
    with pytest.raises(Damaged, match="ends behind its row group"):
        places(io.BytesIO(loop * 9), Chunk(0, 60, compressed=False, highest_level=0))


def test_a_page_with_bytes_behind_its_values_is_said() -> None:
    """As where the header's count is of another page."""
    page = _Page(io.BytesIO(b"\x01\0\0\0a" * 2), 0, 0, 2, 0, 0, 10, 10, compressed=False)
    assert page.plain(2)["offset"].tolist() == [4, 9]
    with pytest.raises(Damaged, match="the values of a page take 5 bytes, and the page has 10"):
        page.plain(1)


def test_zeros_behind_the_values_of_a_page_are_padding() -> None:
    """As fastparquet writes them."""
    page = _Page(io.BytesIO(b"\x01\0\0\0a" + bytes(8)), 0, 0, 1, 0, 0, 13, 13, compressed=False)
    assert page.plain(1)["offset"].tolist() == [4]
    page = _Page(io.BytesIO(b"\x01\0\0\0a" + bytes(9)), 0, 0, 1, 0, 0, 14, 14, compressed=False)
    with pytest.raises(Damaged, match="take 5 bytes, and the page has 14"):
        page.plain(1)


def test_lengths_alone_are_read_of_pages_that_are_not_compressed(tmp_path: Path) -> None:
    images = [np.random.default_rng(row).bytes(100_000) for row in range(20)]
    file = _CountingFile()
    pq.write_table(pa.table({"image": images}), file, compression="none", use_dictionary=False)
    (chunk,) = _chunks(pq.ParquetFile(file), "image")
    file.read_bytes = 0
    assert places(file, chunk)["stored"].tolist() == [100_000] * 20
    assert file.read_bytes < 10_000


class _CountingFile(io.BytesIO):
    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


def test_two_indexes_that_differ_in_how_samples_are_packed(tmp_path: Path) -> None:
    """Two samples of a page that comes whole have the same bytes of the file."""
    stat, packed = Stat(9, 0, 0), np.zeros(2, PACKED)
    digests = set()
    for start in (0, 5):
        packed["start"][1] = start
        same = np.array([4, 4]), np.array([5, 5])
        part = ShardRows(["a"], [stat], np.array([0, 0]), *same, ["x"], np.array([0, 0]), packed.copy())
        digests.add(write_index(tmp_path / "index", "root", [part]).digest)
    assert len(digests) == 2


def test_the_command_indexes_a_folder_of_parquet_files(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "in")
    done = CliRunner().invoke(app, ["data", "index", f"{folder}/train-*.parquet", "-o", f"{tmp_path}/index"])
    assert done.exit_code == 0 and "18 samples of 3 classes in 2 files" in done.output.replace("\n", " ")
