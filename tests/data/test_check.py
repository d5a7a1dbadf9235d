"""A check finds what is wrong with the files of an index, and what is in quarantine is trained on by nobody."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.data import SOURCES, open_data
from raytrain_speedup.data.index import checking
from raytrain_speedup.data.index.checking import check_samples, write_quarantine
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.shards import Index, open_index
from raytrain_speedup.settings import UserError


def jpeg(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG")
    return file.getvalue()


FILES = {
    f"{name}/{i}.jpg": jpeg(10 * k + i) for k, name in enumerate(("ant", "bee", "cow")) for i in range(4)
}
"""Twelve images that differ; the tests spoil some of them. Rows 0 to 3 are ants, 4 to 7 bees, 8 to 11 cows."""


def indexed(folder: Path, changes: dict[str, bytes]) -> Index:
    for name, content in (FILES | changes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return make_index(folder, folder.with_suffix(".index"), processes=1)


@pytest.fixture
def spoilt(tmp_path: Path) -> Index:
    """ant/1 is cut in the middle, ant/3 is text; bee/0 is ant/0; bee/2 is bee/1; cow/1 is in the validation set."""
    cut = FILES["ant/1.jpg"][: len(FILES["ant/1.jpg"]) // 2]
    return indexed(
        tmp_path / "train",
        {
            "ant/1.jpg": cut,
            "ant/3.jpg": b"no image",
            "bee/0.jpg": FILES["ant/0.jpg"],
            "bee/2.jpg": FILES["bee/1.jpg"],
        },
    )


@pytest.fixture
def val(tmp_path: Path) -> Index:
    others = {name: jpeg(100 + i) for i, name in enumerate(FILES)}
    return indexed(tmp_path / "val", others | {"cow/3.jpg": FILES["cow/1.jpg"]})


def test_each_fault_is_found_once_and_says_why(spoilt: Index, val: Index) -> None:
    found = check_samples(spoilt, [val], processes=1)
    assert [(fault.row, fault.kind) for fault in found] == [
        (0, "misplaced"),
        (1, "unreadable"),
        (3, "unreadable"),
        (4, "misplaced"),
        (6, "duplicate"),
        (9, "leaked"),
    ]
    why = {fault.row: fault.why for fault in found}
    assert why[0] == why[4] == "the same file is of the classes ant, bee"
    assert why[3] == "this is no image file" and why[6].endswith("bee/1.jpg") and "val.index" in why[9]
    assert [fault.where.rpartition("train/")[2] for fault in found][:2] == ["ant/0.jpg", "ant/1.jpg"]


def test_sound_data_have_no_faults(tmp_path: Path, val: Index) -> None:
    sound = indexed(tmp_path / "train", {})
    assert check_samples(sound, processes=2) == []
    again = indexed(tmp_path / "again", {})
    assert [fault.row for fault in check_samples(sound, [val, again], processes=1)] == list(range(12))


def test_an_index_is_not_checked_against_itself(tmp_path: Path) -> None:
    """All of its samples would be leaked, and nothing left to train on."""
    sound = indexed(tmp_path / "train", {})
    with pytest.raises(
        UserError, match=r"data check: .*train\.index has the samples of .*train\.index; expected"
    ):
        check_samples(sound, [sound], processes=1)
    rows = "".join(f"{row}\n" for row in range(12))
    (sound.folder / "quarantine.csv").write_text(f"row\n{rows}")
    section = {"train": sound.folder, "test": sound.folder, "image_size": 8}
    with pytest.raises(UserError, match=r"data\.train: all 12 samples of .* are in its quarantine\.csv"):
        SOURCES["index"](**section).read()


def test_a_pool_that_sees_no_index_finds_the_same(
    spoilt: Index, val: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of chunks that end within a class; the folder with the tables is gone when they are checked."""
    found = check_samples(spoilt, [val], processes=1)
    monkeypatch.setattr(checking, "_CHUNK", 3)
    for index in (spoilt, val):
        index.folder.rename(index.folder.with_suffix(".away"))
    with ThreadPoolExecutor(2) as pool:
        assert check_samples(spoilt, [val], pool=pool) == found


def test_files_that_are_gone_are_unreadable_and_equal_nothing(spoilt: Index) -> None:
    root = Path(spoilt.root)
    for name in ("cow/0.jpg", "cow/2.jpg"):
        (root / name).unlink()
    kinds = {fault.row: fault.kind for fault in check_samples(spoilt, processes=1)}
    assert kinds[8] == kinds[10] == "unreadable"
    assert "No such file" in next(f.why for f in check_samples(spoilt, processes=1) if f.row == 8)


def test_trainings_leave_out_what_is_in_quarantine(spoilt: Index, val: Index, caplog) -> None:
    settings = SOURCES["index"](
        source="index", train=spoilt.folder, test=val.folder, image_size=8, val_fraction=0, augment="none"
    )
    before = open_data(settings, seed=0)
    faults = check_samples(spoilt, [val], processes=1)
    assert write_quarantine(spoilt, faults, ["unreadable", "duplicate"]) == 3
    with caplog.at_level("INFO"):
        after = open_data(settings, seed=0)
    assert "data.train: 3 samples in quarantine are left out" in caplog.text
    assert (len(before.train), len(after.train), len(after.test)) == (12, 9, 12)
    assert after.train.targets.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    kept = [after.train.locate(i).rpartition("train/")[2] for i in range(9)]
    assert kept == [name for name in FILES if name not in ("ant/1.jpg", "ant/3.jpg", "bee/2.jpg")]
    assert after.fingerprint != before.fingerprint, "runs of other samples are not compared"
    assert len(check_samples(spoilt, [val], processes=1)) == 6, "a check looks at all of them again"
    assert write_quarantine(spoilt, [], ["unreadable"]) == 0
    assert open_data(settings, seed=0).fingerprint == before.fingerprint


def test_a_list_may_be_edited_and_a_wrong_line_is_named(spoilt: Index) -> None:
    file = spoilt.folder / "quarantine.csv"
    file.write_text("row,kind,where,why\n5,mine,,ugly\n2\n")
    assert spoilt.quarantined().tolist() == [2, 5]
    file.write_text("row,kind,where,why\n5,mine,,ugly\n12,,,\n")
    with pytest.raises(UserError, match=r"quarantine\.csv: line 3 names row '12'; expected one from 0 to 11"):
        spoilt.quarantined()


def test_names_with_commas_and_line_ends_are_read_back(tmp_path: Path) -> None:
    odd = indexed(tmp_path / "train", {"ant/a,b\nc\u2028d.jpg": b"no image"})
    faults = check_samples(odd, processes=1)
    assert write_quarantine(odd, faults, ["unreadable"]) == 1
    assert odd.quarantined().tolist() == [fault.row for fault in faults] and len(faults) == 1


def test_the_command(spoilt: Index, val: Index) -> None:
    def run(*arguments: str) -> str:
        found = CliRunner().invoke(app, ["data", "check", str(spoilt.folder), *arguments, "--processes=1"])
        assert found.exit_code == 0, found.output
        return " ".join(found.output.split())

    assert "5 of 12 samples would be left out" in run(str(val.folder), "--dry-run")
    assert not (spoilt.folder / "quarantine.csv").exists()
    assert "5 of 12 samples are left out" in run(str(val.folder))
    assert open_index(spoilt.folder).quarantined().tolist() == [0, 1, 3, 4, 9]
    assert "1 of 12 samples are left out" in run("-q", "duplicate")
    assert open_index(spoilt.folder).quarantined().tolist() == [6]


def test_what_is_no_index_is_a_line(tmp_path: Path) -> None:
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, "-m", "raytrain_speedup.cli", "data", "check", str(tmp_path / "nowhere")]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 2 and "nowhere is no index; expected a folder that" in found.stderr
    assert "Traceback" not in found.stderr
