"""Files as they come: each oddity ends in one line that names it, or is read; none in a traceback or in silence."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import picture, write_parquet

from raytrain_speedup.data import Splits, open_data
from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.folders import ImageFolderSettings
from raytrain_speedup.data.masks import MaskFolderSettings
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.settings import UserError

NOBODY = 65534
GIGABYTE = 1 << 30


def read_folder(root: Path, **settings: Any) -> Splits:
    return open_data(ImageFolderSettings(root=root, val_fraction=0, **settings), seed=0)


def read_parquet(train: Path, test: Path, **settings: Any) -> Splits:
    return open_data(ParquetSettings(train=train, test=test, val_fraction=0, **settings), seed=0)


def refusal(train: Path, test: Path, **settings: Any) -> str:
    """The message, which is a single line."""
    with pytest.raises(UserError) as caught:
        read_parquet(train, test, **settings)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """As a user whom permissions bind: root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def little_memory(spare: int) -> Iterator[None]:
    """No more than `spare` bytes beyond what the process has: what asks for more fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def open_folder(folder: Path) -> Iterator[Path]:
    """A copy of the folder of images where others may look: pytest's own is closed to them."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    shutil.copytree(folder, place / "data")
    (place / "data").chmod(0o755)
    yield place / "data"
    shutil.rmtree(place)


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "found"),
        [
            ([3, 10**12, 7] * 5, "3 different numbers up to 1000000000000"),
            (list(range(2000)), "a value of its own in each of the 2000 rows"),
            ([f"photograph {i}" for i in range(2000)], "a value of its own in each of the 2000 rows"),
        ],
        ids=["large", "numbers of rows", "names of files"],
    )
    def test_identifiers_are_no_classes(self, parquet, tmp_path, labels, found) -> None:
        train = write_parquet(tmp_path / "ids.parquet", [b""] * len(labels), labels)
        with little_memory(GIGABYTE):
            told = refusal(train, parquet["test"])
        assert told == (
            f"data.label_column: column 'label' of {train} holds {found}, as identifiers do; expected class "
            "numbers from 0 on, or class names"
        )

    def test_many_classes_and_gaps_are_classes(self, parquet, tmp_path) -> None:
        """Numbers beyond 65,535 that mostly occur, and small ones that mostly do not."""
        many = np.arange(70_000).repeat(2)
        train = write_parquet(tmp_path / "many.parquet", [picture(0)] * len(many), many, row_group_size=10**6)
        assert read_parquet(train, parquet["test"]).num_classes == 70_000
        gaps = write_parquet(tmp_path / "gaps.parquet", [picture(0)] * 4, [0, 999, 999, 21_840])
        assert read_parquet(gaps, parquet["test"]).num_classes == 21_841

    def test_a_published_list_of_classes_decides(self, parquet, tmp_path) -> None:
        table = pa.table({"image": [picture(0)] * 2, "label": [0, 10**12]})
        pq.write_table(table.replace_schema_metadata({"classes": "a,b,c"}), tmp_path / "a.parquet")
        told = refusal(tmp_path / "a.parquet", parquet["test"])
        assert "row 1 has the label 1000000000000; expected one of the 3 classes" in told

    def test_part_files_of_other_widths(self, parquet, tmp_path) -> None:
        """The first part is of the narrowest numbers, which could not hold the others'."""
        (tmp_path / "parts").mkdir()
        labels = [[0, 1, 2], [0, 1, 300], [2, 1, 0]]
        for number, kind in enumerate((pa.uint8(), pa.int32(), pa.int64())):
            part = pa.array(labels[number], kind)
            write_parquet(tmp_path / "parts" / f"{number}.parquet", [picture(0)] * 3, part)
        splits = read_parquet(tmp_path / "parts", parquet["test"])
        assert (
            splits.train.targets.tolist() == [*labels[0], *labels[1], *labels[2]]
            and splits.num_classes == 301
        )

    def test_part_files_of_both_kinds_of_strings(self, parquet, tmp_path) -> None:
        (tmp_path / "parts").mkdir()
        for number, kind in enumerate((pa.string(), pa.large_string())):
            labels = pa.array(["dog", "cat"], kind)
            write_parquet(tmp_path / "parts" / f"{number}.parquet", [picture(0)] * 2, labels)
        test = write_parquet(tmp_path / "test.parquet", [picture(0)], ["dog"])
        splits = read_parquet(tmp_path / "parts", test)
        assert splits.train.targets.tolist() == [1, 0, 1, 0] and splits.test.targets.tolist() == [1]

    def test_part_files_of_names_and_numbers(self, parquet, tmp_path) -> None:
        (tmp_path / "parts").mkdir()
        for number, labels in enumerate(([0, 1], ["0", "1"])):
            write_parquet(tmp_path / "parts" / f"{number}.parquet", [picture(0)] * 2, labels)
        told = refusal(tmp_path / "parts", parquet["test"])
        assert "column 'label' holds int64 and string in the files of" in told

    def test_numbers_beyond_int64(self, parquet, tmp_path) -> None:
        labels = pa.array([0, 2**63], pa.uint64())
        told = refusal(write_parquet(tmp_path / "a.parquet", [b""] * 2, labels), parquet["test"])
        assert told.startswith("data.train: column 'label' of") and "9223372036854775808" in told

    def test_text_that_is_not_utf_8(self, parquet, tmp_path) -> None:
        ends = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32))
        labels = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"ab\xff\xfe")])
        table = pa.Table.from_arrays([pa.array([b"", b""]), labels], names=["image", "label"])
        pq.write_table(table, tmp_path / "a.parquet")
        assert "Invalid UTF8 sequence at string index 1" in refusal(tmp_path / "a.parquet", parquet["test"])


class TestMetadata:
    @pytest.mark.parametrize(
        "metadata",
        [
            b"{broken",
            b"\xff\xfe",
            b"[]",
            b'{"info": null}',
            b'{"info": {"features": ["label"]}}',
            b'{"info": {"features": {"label": "ClassLabel"}}}',
            b'{"info": {"features": {"label": {"names": "a, b, c"}}}}',
            b'{"info": {"features": {"label": {"names": [1, 2, 3]}}}}',
        ],
    )
    def test_malformed_hugging_face_metadata_are_reported(self, parquet, tmp_path, caplog, metadata) -> None:
        table = pa.table({"image": [picture(0)] * 3, "label": [0, 1, 2]})
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "hf.parquet")
        assert read_parquet(tmp_path / "hf.parquet", parquet["test"]).class_names == ("0", "1", "2")
        (told,) = caplog.messages
        assert told.startswith(f"data.train: no class names are taken from the metadata of {tmp_path}")
        assert len(told.splitlines()) == 1

    @pytest.mark.parametrize("info", [{}, {"features": {}}, {"features": {"label": {"dtype": "int64"}}}])
    def test_metadata_without_names_are_no_mistake(self, parquet, tmp_path, caplog, info) -> None:
        table = pa.table({"image": [picture(0)] * 3, "label": [0, 1, 2]})
        metadata = json.dumps({"info": info})
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "hf.parquet")
        assert read_parquet(tmp_path / "hf.parquet", parquet["test"]).class_names == ("0", "1", "2")
        assert not caplog.messages

    def test_names_of_classes_that_are_not_utf_8(self, parquet, tmp_path, caplog) -> None:
        table = pa.table({"image": [picture(0)] * 2, "label": [0, 1]})
        pq.write_table(table.replace_schema_metadata({"classes": b"caf\xe9,bar"}), tmp_path / "a.parquet")
        test = write_parquet(tmp_path / "test.parquet", [picture(0)], [1])
        assert read_parquet(tmp_path / "a.parquet", test).class_names == ("0", "1")
        assert "can't decode byte 0xe9" in caplog.messages[0]


class TestParquetFiles:
    @pytest.mark.parametrize(("column", "key"), [("label", "label_column"), ("image", "image_column")])
    def test_two_columns_of_one_name(self, parquet, tmp_path, column, key) -> None:
        columns = {"image": pa.array([picture(0)]), "label": pa.array([0])}
        names = ["image", "label", column]
        table = pa.Table.from_arrays([columns[name] for name in names], names=names)
        pq.write_table(table, tmp_path / "two.parquet")
        told = refusal(tmp_path / "two.parquet", parquet["test"])
        assert (
            told == f"data.{key}: {tmp_path}/two.parquet has 2 columns of the name '{column}'; expected one"
        )

    def test_two_columns_of_a_name_that_nobody_asks_for(self, parquet, tmp_path) -> None:
        arrays = [pa.array([b"x"]), pa.array([picture(4)]), pa.array([b"y"]), pa.array([0])]
        table = pa.Table.from_arrays(arrays, names=["extra", "image", "extra", "label"])
        pq.write_table(table, tmp_path / "two.parquet")
        test = write_parquet(tmp_path / "test.parquet", [picture(0)], [0])
        assert read_parquet(tmp_path / "two.parquet", test).train.decode(0)[0, 0].tolist() == [20, 20, 40]

    def test_a_column_whose_name_is_not_utf_8(self, parquet, tmp_path) -> None:
        fields = [pa.field(b"caf\xe9", pa.int64()), pa.field("label", pa.int64())]
        table = pa.Table.from_arrays([pa.array([1]), pa.array([0])], schema=pa.schema(fields))
        pq.write_table(table, tmp_path / "a.parquet")
        assert "a.parquet has a column whose name is not UTF-8" in refusal(
            tmp_path / "a.parquet", parquet["test"]
        )

    def test_a_path_that_is_not_utf_8(self, parquet, tmp_path) -> None:
        odd = tmp_path / os.fsdecode(b"caf\xe9.parquet")
        shutil.copy(parquet["train"], odd)
        told = refusal(odd, parquet["test"])
        assert told == rf"data.train: {tmp_path}/caf\xe9.parquet is not UTF-8; expected a path that is"

    def test_a_file_that_may_not_be_read(self, parquet, open_folder) -> None:
        place = open_folder.parent
        for name, path in parquet.items():
            shutil.copy(path, place / f"{name}.parquet")
        (place / "train.parquet").chmod(0)
        with without_privileges():
            told = refusal(place / "train.parquet", place / "test.parquet")
        assert told.startswith(f"data.train: {place}/train.parquet") and "Permission denied" in told

    @pytest.mark.parametrize("inside", [True, False], ids=["parts", "a folder above"])
    def test_a_folder_that_may_not_be_read(self, parquet, open_folder, inside) -> None:
        place = open_folder.parent
        (place / "closed").mkdir()
        for path in parquet.values():
            shutil.copy(path, place / "closed")
        (place / "closed").chmod(0)
        train = place / "closed" if inside else place / "closed" / "train.parquet"
        with without_privileges():
            told = refusal(train, place / "test.parquet")
        assert told.startswith(f"data.train: {train} cannot be read: Permission denied")

    def test_folders_among_part_files_are_reported(self, parquet, tmp_path, caplog) -> None:
        (tmp_path / "parts" / "year=2024").mkdir(parents=True)
        shutil.copy(parquet["train"], tmp_path / "parts")
        assert len(read_parquet(tmp_path / "parts", parquet["test"]).train) == 60
        assert caplog.messages == [f"data.train: folders in {tmp_path}/parts are not read: year=2024"]


class TestImageFolders:
    @pytest.mark.parametrize("closed", ["train/bee", "train/bee/more", "train", ""])
    def test_a_folder_that_may_not_be_read_is_refused(self, open_folder, closed) -> None:
        (open_folder / "train" / "bee" / "more").mkdir()
        (open_folder / closed).chmod(0)
        with without_privileges(), pytest.raises(UserError) as caught:
            read_folder(open_folder)
        place = str(open_folder / closed)
        assert (
            str(caught.value)
            == f"data.root: {place} cannot be read: Permission denied; expected to be let in"
        )

    def test_an_image_that_may_not_be_read_is_unreadable(self, open_folder) -> None:
        (open_folder / "train" / "ant" / "0.jpg").chmod(0)
        with without_privileges(), pytest.raises(CorruptSample, match=r"ant/0\.jpg: Permission denied"):
            read_folder(open_folder).train.decode(0)

    def test_links_are_followed(self, folder, tmp_path_factory) -> None:
        """To a class, to a folder inside a class, and to an image."""
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (folder / "train" / "bee").rename(elsewhere / "bee")
        (folder / "train" / "bee").symlink_to(elsewhere / "bee")
        (elsewhere / "more").mkdir()
        (elsewhere / "more" / "8.jpg").write_bytes(picture(8, kind="JPEG"))
        (folder / "train" / "ant" / "more").symlink_to(elsewhere / "more")
        (folder / "train" / "cow" / "8.jpg").symlink_to(elsewhere / "more" / "8.jpg")
        train = read_folder(folder).train
        assert np.bincount(train.targets).tolist() == [9, 8, 9]
        assert {train.decode(i).shape[2] for i in range(len(train))} == {3}
        assert train.locate(8) == str(folder / "train" / "ant" / "more" / "8.jpg")

    def test_a_class_behind_a_link_to_nothing_is_refused(self, folder) -> None:
        (folder / "train" / "dodo").symlink_to(folder / "gone")
        with pytest.raises(
            UserError, match=r"data\.root: .*/train/dodo leads to nothing; expected the folder"
        ):
            read_folder(folder)

    def test_links_in_a_circle_are_refused(self, folder) -> None:
        (folder / "train" / "bee" / "again").symlink_to(folder / "train")
        with pytest.raises(UserError, match=r"data\.root: the link .*/again/bee leads back to a folder"):
            read_folder(folder)

    def test_empty_classes_are_named(self, folder, caplog) -> None:
        for name in ("dodo", "emu"):
            (folder / "train" / name).mkdir()
            (folder / "test" / name).mkdir()
        shutil.rmtree(folder / "test" / "ant")
        splits = read_folder(folder)
        assert splits.num_classes == 5
        assert caplog.messages == [
            f"data.root: 2 of the 5 classes have no image in {folder}/train: dodo, emu",
            f"data.root: 3 of the 5 classes have no image in {folder}/test: ant, dodo, emu",
        ]

    def test_what_is_left_out_is_named(self, folder, caplog) -> None:
        (folder / "train" / "stray.jpg").write_bytes(picture(0, kind="JPEG"))
        (folder / "train" / "ant" / "photo.heic").write_bytes(b"")
        (folder / "train" / "bee" / "more").mkdir()
        (folder / "train" / "bee" / "more" / "photo.jpg.part").write_bytes(b"")
        assert len(read_folder(folder).train) == 24
        (told,) = caplog.messages
        assert told.startswith(f"data.root: left out 3 files in {folder}/train")
        assert told.endswith(": stray.jpg, ant/photo.heic, bee/more/photo.jpg.part")

    def test_names_that_are_not_utf_8(self, folder) -> None:
        """They are read, and shown with escapes: a name goes to a terminal, a database and a schedule."""
        for split in ("train", "test"):
            (folder / split / "bee").rename(folder / split / os.fsdecode(b"caf\xe9"))
        (folder / "train" / "ant" / "0.jpg").rename(folder / "train" / "ant" / os.fsdecode(b"\xff.jpg"))
        splits = read_folder(folder)
        assert splits.class_names == ("ant", "caf\\xe9", "cow")
        assert np.bincount(splits.train.targets).tolist() == [8, 8, 8]
        assert {splits.train.decode(i).shape[2] for i in range(24)} == {3}
        assert splits.train.locate(7) == rf"{folder}/train/ant/\xff.jpg"
        assert all(splits.train.locate(i).encode() for i in range(24))
        assert pickle.loads(pickle.dumps(splits.train)).decode(7).shape[2] == 3


class TestMaskFolders:
    def test_a_folder_that_may_not_be_read_is_refused(self, open_folder) -> None:
        """The folder of one class serves as a folder of images."""
        (open_folder / "test" / "ant").chmod(0)
        settings = MaskFolderSettings(root=open_folder, images="{split}/ant", masks="{split}/ant", classes=2)
        with (
            without_privileges(),
            pytest.raises(UserError, match=r"data\.images: .*/test/ant cannot be read"),
        ):
            open_data(settings, seed=0)

    def test_what_is_left_out_is_named(self, folder, caplog) -> None:
        (folder / "train" / "ant" / "city").mkdir()
        settings = MaskFolderSettings(
            root=folder, images="{split}/ant", masks="{split}/ant", classes=2, image_size=8
        )
        assert len(open_data(settings, seed=0).test) == 2
        assert all("left out 1 files" in told and told.endswith(": city") for told in caplog.messages)
        assert len(caplog.messages) == 2

    def test_masks_that_are_kept_back(self, folder) -> None:
        """A benchmark gives the images of its test split alone: then the validation split is the test split."""
        (folder / "train").rename(folder / "images")
        (folder / "test").rename(folder / "masks")
        for kind, name in (("images", "bee"), ("masks", "bee")):
            shutil.copytree(folder / "images" / "ant", folder / kind / "train", dirs_exist_ok=True)
            shutil.copytree(folder / "images" / name, folder / kind / "val", dirs_exist_ok=True)
        shutil.copytree(folder / "images" / "cow", folder / "images" / "test")
        settings = MaskFolderSettings(
            root=folder,
            images="images/{split}",
            masks="masks/{split}",
            classes=2,
            image_size=8,
            val_fraction=0.25,
        )
        splits = open_data(settings, seed=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 8)
        assert splits.test.locate(0) == str(folder / "images" / "val" / "0.jpg")
