"""Where the data have no test split, the same part of the training data is it for every run, and for nobody to
train on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_data import picture, write_parquet
from tiny_shards import FILES, loose, nested

from raytrain_speedup.config import load_experiment
from raytrain_speedup.data import SOURCES, Source, Splits, open_data
from raytrain_speedup.data.digits import DigitsSettings
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.settings import UserError

KINDS = ("imagefolder", "index", "parquet")


def written(kind: str, folder: Path) -> dict[str, Any]:
    """Three classes of six samples, without a test split: the keys of the section that reads them."""
    if kind == "imagefolder":
        loose(folder / "train")
        return {"source": kind, "root": folder}
    if kind == "index":
        make_index(nested(folder / "all.tar"), folder / "index", processes=1)
        return {"source": kind, "train": folder / "index"}
    images = [picture(number) for number in range(18)]
    return {"source": kind, "train": write_parquet(folder / "x.parquet", images, [i % 3 for i in range(18)])}


def opened(keys: dict[str, Any], seed: int = 0, **more: Any) -> Splits:
    known = {"image_size": 8, "val_fraction": 0.2, "test_fraction": 1 / 3}
    return open_data(SOURCES[keys["source"]](**(known | keys | more)), seed=seed)


def places(source: Source) -> list[str]:
    return [source.locate(index) for index in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_disjoint_by_class_and_the_same_for_every_seed(kind: str, tmp_path: Path) -> None:
    keys = written(kind, tmp_path)
    splits = opened(keys)
    parts = [places(part) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [10, 2, 6]
    assert len({place for part in parts for place in part}) == 18, "each sample is in one split"
    assert np.bincount(splits.test.targets).tolist() == [2, 2, 2]
    other = opened(keys, seed=1, split_seed=None, val_fraction=0)
    assert places(other.test) == parts[2] and len(other.train) == 12
    assert not set(places(other.train)) & set(parts[2])
    assert places(opened(keys, split_seed=5).test) == parts[2]
    assert splits.test.decode(0).shape[2] == 3


def test_the_fingerprint_tells_it(tmp_path: Path) -> None:
    keys = written("index", tmp_path)
    same, fewer = opened(keys, seed=5), opened(keys, test_fraction=1 / 6)
    assert same.fingerprint == opened(keys).fingerprint != fewer.fingerprint
    assert fewer.fingerprint != opened(keys | {"test": keys["train"]}, test_fraction=None).fingerprint


def test_what_goes_into_quarantine_moves_no_other_sample(tmp_path: Path) -> None:
    keys = written("index", tmp_path)
    before = opened(keys, val_fraction=0)
    rows = [list(FILES).index(name) for name in ("n01/0.png", "n02/1.png", "n10/4.png")]
    gone = [before.test.locate(0), before.test.locate(3)]
    every = places(opened(keys | {"test": keys["train"]}, test_fraction=None).test)
    rows += [every.index(place) for place in gone]
    (keys["train"] / "quarantine.csv").write_text("row\n" + "\n".join(map(str, rows)))
    after = opened(keys, val_fraction=0)
    left_out = {every[row] for row in rows}
    for one, other in ((before.train, after.train), (before.test, after.test)):
        assert places(other) == [place for place in places(one) if place not in left_out]
    assert len(after.train) + len(after.test) == 18 - len(left_out) < len(before.train) + len(before.test)
    assert after.fingerprint != before.fingerprint


def test_of_an_image_folder_val_is_then_the_validation_split(tmp_path: Path) -> None:
    keys = written("imagefolder", tmp_path)
    loose(tmp_path / "val")
    splits = opened(keys)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 18, 6)
    assert all(f"{os.sep}train{os.sep}" in place for place in places(splits.test))
    loose(tmp_path / "test")
    with pytest.raises(UserError, match=r"data\.test_fraction: 0\.3.* and there is .*test; expected null"):
        opened(keys)
    assert len(opened(keys, test_fraction=None).test) == 18


def test_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = written("index", tmp_path)
    with caplog.at_level("INFO"):
        opened(keys, test_fraction=1 / 18)
    told = "data.test_fraction: 1 training samples are held back as the test split, of 1 of the 3 classes"
    assert caplog.messages == [told]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0, r"^digits: data\.test_fraction: 0 is not allowed; expected greater than 0$"),
        (0.6, r"^digits: data\.test_fraction: 0\.6 is not allowed; expected less than or equal to 0\.5$"),
        (0.02, r"^data\.test_fraction: 0\.02 of 18 training .* are none; expected at least 0\.056, .*$"),
    ],
)
def test_too_much_and_too_little_are_one_line(
    kind: str, fraction: float, message: str, tmp_path: Path
) -> None:
    keys = {f"data.{key}": value for key, value in written(kind, tmp_path).items()}
    keys |= {"data.image_size": 8, "data.test_fraction": fraction}
    with pytest.raises(UserError, match=message):
        open_data(load_experiment("digits", keys).data, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_without_it_the_line_names_it(kind: str, tmp_path: Path) -> None:
    keys = {f"data.{key}": value for key, value in written(kind, tmp_path).items()}
    with pytest.raises(
        UserError,
        match=r"^(digits: )?data(\.root)?: .*test.*; expected .*test_fraction.* such as 0\.01[^\n]*$",
    ):
        open_data(load_experiment("digits", keys | {"data.image_size": 8}).data, seed=0)


def test_beside_a_test_split_it_is_refused(tmp_path: Path) -> None:
    keys = {f"data.{key}": value for key, value in written("index", tmp_path).items()}
    keys |= {"data.test": tmp_path / "index", "data.test_fraction": 0.1}
    with pytest.raises(
        UserError, match=r"data: test_fraction: 0\.1 is given beside test: .*index; expected one"
    ):
        load_experiment("digits", keys)
    with pytest.raises(
        UserError, match=r"data\.test_fraction: 0\.1 is given, and digits has a test split of its"
    ):
        open_data(DigitsSettings(test_fraction=0.1), seed=0)


def test_classes_of_one_sample_stay(tmp_path: Path) -> None:
    """Of fifty classes of one image there is nothing to hold back; of a class of two there is one."""
    images = [picture(number) for number in range(50)]
    alone = write_parquet(tmp_path / "alone.parquet", images, list(range(50)))
    with pytest.raises(UserError, match="classes of two samples or more"):
        opened({"source": "parquet", "train": alone})
    pair = write_parquet(tmp_path / "pair.parquet", images, [*range(49), 7])
    found = opened({"source": "parquet", "train": pair}, val_fraction=0)
    assert found.test.targets.tolist() == [7] and sorted(set(found.train.targets.tolist())) == list(range(49))
