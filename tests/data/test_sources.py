"""Every source: what it reads, and what it says where something is missing."""

from __future__ import annotations

import io
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny_data import picture, write_parquet
from torchvision import datasets

from raytrain_speedup.data import SOURCES, DataSettings, build_loader, open_data
from raytrain_speedup.data.base import CorruptSample
from raytrain_speedup.data.cifar import Cifar10Settings, Cifar100Settings
from raytrain_speedup.data.digits import DigitsSettings, _table
from raytrain_speedup.data.folders import ImageFolderSettings
from raytrain_speedup.data.parquet import ParquetSettings
from raytrain_speedup.settings import UserError


def open_parquet(**settings):
    return open_data(ParquetSettings(**settings), seed=0)


def write_cifar(root: Path, settings: type[DataSettings]) -> None:
    """Files in torchvision's format, with its checksums replaced by theirs: the real ones are 170 MB."""
    dataset = getattr(datasets, settings.dataset)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    label = "labels" if settings is Cifar10Settings else "fine_labels"
    for name, _ in [*dataset.train_list, *dataset.test_list]:
        entry = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), label: list(range(10)) * 2}
        (folder / name).write_bytes(pickle.dumps(entry))
    names = [f"class {i}" for i in range(10)]
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: names}))


class TestEverySource:
    def test_registry_names_are_the_tags(self) -> None:
        for name, settings in SOURCES.items():
            assert settings.model_fields["source"].default == name

    def test_every_field_is_described(self) -> None:
        for settings in SOURCES.values():
            for name, field in settings.model_fields.items():
                assert field.description or name == "source", (settings, name)

    def test_wrong_numbers_of_channels_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"data\.mean: .* has 3 values; expected 1"):
            open_data(DigitsSettings(mean=(0.1, 0.2, 0.3)), seed=0)


class TestDigits:
    def test_splits(self) -> None:
        splits = open_data(DigitsSettings(), seed=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (1294, 144, 359)
        assert (splits.num_classes, splits.channels, splits.image_size) == (10, 1, 16)
        counts = np.bincount(splits.test.targets)
        assert counts.max() - counts.min() <= 2
        image = splits.train.decode(0)
        assert image.shape == (16, 16, 1) and image.dtype == np.uint8 and image.max() > 200
        assert splits.train.targets.dtype == np.int64

    def test_they_are_scikit_learns(self) -> None:
        from sklearn.datasets import load_digits

        small, targets = _table()
        assert (small == load_digits().images).all() and (targets == load_digits().target).all()

    def test_image_size(self) -> None:
        assert open_data(DigitsSettings(image_size=32), seed=0).train.decode(3).shape == (32, 32, 1)

    def test_the_test_split_does_not_depend_on_seeds(self) -> None:
        first, second = (open_data(DigitsSettings(split_seed=s, val_fraction=s / 10), seed=s) for s in (1, 2))
        assert np.array_equal(first.test.images, second.test.images)

    def test_normalisation_fits(self) -> None:
        splits = open_data(DigitsSettings(augment="none"), seed=0)
        loader = build_loader(splits, DigitsSettings(augment="none"), device="cpu", seed=0)
        pixels = torch.cat([batch["inputs"] for batch in loader.eval_batches("test", batch_size=100)])
        assert pixels.mean().abs() < 0.05 and (pixels.std() - 1).abs() < 0.05


class TestCifar:
    @pytest.mark.parametrize("settings", [Cifar10Settings, Cifar100Settings])
    def test_reads_torchvisions_folder(self, tmp_path, monkeypatch, settings) -> None:
        write_cifar(tmp_path, settings)
        dataset = getattr(datasets, settings.dataset)
        monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        splits = open_data(settings(root=tmp_path), seed=0)
        files = len(dataset.train_list)
        assert len(splits.train) + len(splits.val) == 20 * files
        assert len(splits.test) == 20 and splits.image_size == 32
        assert splits.train.decode(0).shape == (32, 32, 3)
        assert splits.class_names[1] == "class 1"

    @pytest.mark.parametrize("settings", [Cifar10Settings, Cifar100Settings])
    def test_is_downloaded_only_when_asked(self, tmp_path, settings) -> None:
        with pytest.raises(UserError, match=r"data\.root: .* data\.download=true"):
            open_data(settings(root=tmp_path), seed=0)
        assert list(tmp_path.iterdir()) == []


class TestParquet:
    def test_reads_rows_of_every_row_group(self, parquet) -> None:
        splits = open_parquet(**parquet, val_fraction=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (60, 0, 15)
        assert splits.num_classes == 3 and splits.image_size == 12
        for index in (0, 9, 10, 59, 25):
            expected = np.asarray(Image.open(io.BytesIO(picture(index))))
            assert np.array_equal(splits.train.decode(index), expected)
        assert splits.train.targets.tolist() == [i % 3 for i in range(60)]
        assert splits.train.locate(25).endswith("train.parquet row 25")

    def test_a_folder_of_part_files(self, parquet, tmp_path) -> None:
        parts = tmp_path / "parts"
        parts.mkdir()
        for part in range(2):
            rows = range(30 * part, 30 * part + 30)
            write_parquet(parts / f"{part}.parquet", [picture(i) for i in rows], [i % 3 for i in rows])
        whole = open_parquet(**parquet, val_fraction=0)
        split = open_parquet(train=parts, test=parquet["test"], val_fraction=0)
        assert all(np.array_equal(whole.train.decode(i), split.train.decode(i)) for i in range(60))
        assert split.train.locate(31).endswith("1.parquet row 1")

    def test_a_validation_file_of_its_own(self, parquet) -> None:
        splits = open_parquet(**parquet, val=parquet["test"])
        assert (len(splits.train), len(splits.val)) == (60, 15)

    def test_labels_can_be_names(self, parquet, tmp_path) -> None:
        images = [picture(i) for i in range(4)]
        train = write_parquet(tmp_path / "a.parquet", images, ["dog", "cat", "dog", "cat"])
        test = write_parquet(tmp_path / "b.parquet", images[:2], ["cat", "dog"])
        splits = open_parquet(train=train, test=test, val_fraction=0)
        assert splits.class_names == ("cat", "dog")
        assert splits.train.targets.tolist() == [1, 0, 1, 0] and splits.test.targets.tolist() == [0, 1]

    def test_class_names_from_the_metadata(self, shared_data) -> None:
        splits = open_parquet(
            train=shared_data / "cifar10-train.parquet", test=shared_data / "cifar10-test.parquet"
        )
        assert splits.class_names[6] == "frog" and splits.image_size == 32
        assert (len(splits.train), len(splits.val), len(splits.test)) == (45000, 5000, 10000)
        assert set(np.bincount(splits.val.targets)) == {500}

    def test_hugging_faces_layout(self, parquet, tmp_path) -> None:
        rows = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(12)]
        features = '{"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}'
        table = pa.table({"image": rows, "label": [i % 2 for i in range(12)]})
        pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "hf.parquet")
        splits = open_parquet(train=tmp_path / "hf.parquet", test=parquet["test"], val_fraction=0)
        assert splits.class_names == ("a", "b", "c")
        assert np.array_equal(splits.train.decode(7)[0, 0], (20, 20, 55))

    def test_can_be_sent_to_another_process(self, parquet) -> None:
        train = open_parquet(**parquet).train
        expected = train.decode(11)
        copy = pickle.loads(pickle.dumps(train))
        assert np.array_equal(copy.decode(11), expected)
        assert len(pickle.dumps(train)) < 20_000  # no cached images travel

    def test_memory_stays_within_the_limit(self, parquet) -> None:
        train = ParquetSettings(**parquet).read().train
        train.prepare(1e9)
        assert len(train._cache) == 6
        small = pickle.loads(pickle.dumps(train))
        small._limit = train.groups[0].size * 2.5
        images = [small.decode(i) for i in range(0, 60, 5)]
        assert len(small._cache) == 2
        assert all(
            np.array_equal(image, train.decode(i)) for i, image in zip(range(0, 60, 5), images, strict=True)
        )

    def test_missing_file(self, parquet, tmp_path) -> None:
        with pytest.raises(UserError, match=r"data\.test: .*nowhere\.parquet does not exist"):
            open_parquet(train=parquet["train"], test=tmp_path / "nowhere.parquet")

    def test_empty_folder(self, parquet, tmp_path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=r"data\.train: the folder .*empty holds no \.parquet file"):
            open_parquet(train=tmp_path / "empty", test=parquet["test"])

    def test_train_is_required(self) -> None:
        with pytest.raises(ValidationError, match="train"):
            ParquetSettings(test="x.parquet")

    @pytest.mark.parametrize("key", ["image_column", "label_column"])
    def test_wrong_columns(self, parquet, key) -> None:
        with pytest.raises(
            UserError, match=rf"data\.{key}: .* no column 'nope'; expected one of: image, label"
        ):
            open_parquet(**parquet, **{key: "nope"})

    def test_columns_of_the_wrong_kind(self, parquet) -> None:
        with pytest.raises(UserError, match=r"data\.image_column: column 'label' .* holds int64"):
            open_parquet(**parquet, image_column="label")
        with pytest.raises(UserError, match=r"data\.label_column: column 'image' .* holds binary"):
            open_parquet(**parquet, label_column="image")

    @pytest.mark.parametrize("label", [-1, 3])
    def test_label_out_of_range(self, parquet, tmp_path, label) -> None:
        test = write_parquet(tmp_path / "bad.parquet", [picture(0)] * 3, [0, 1, label])
        with pytest.raises(
            UserError, match=rf"data\.test: .*bad\.parquet row 2 has the label {label}; .* 3 classes"
        ):
            open_parquet(train=parquet["train"], test=test)

    def test_unknown_class_name(self, tmp_path) -> None:
        train = write_parquet(tmp_path / "a.parquet", [picture(0)] * 2, ["dog", "cat"])
        test = write_parquet(tmp_path / "b.parquet", [picture(0)], ["cow"])
        with pytest.raises(UserError, match=r"row 0 has the label 'cow'"):
            open_parquet(train=train, test=test, val_fraction=0)

    def test_missing_label(self, parquet, tmp_path) -> None:
        test = write_parquet(tmp_path / "bad.parquet", [picture(0)] * 2, [1, None])
        with pytest.raises(UserError, match=r"data\.test: .* row 1 has no label"):
            open_parquet(train=parquet["train"], test=test)

    def test_truncated_file(self, parquet) -> None:
        data = parquet["train"].read_bytes()
        parquet["train"].write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=r"data\.train: .*train\.parquet is not a whole Parquet file"):
            open_parquet(**parquet)

    def test_a_damaged_row_group_loses_its_rows_only(self, parquet) -> None:
        meta = pq.ParquetFile(parquet["train"]).metadata.row_group(2).column(0)
        start = meta.dictionary_page_offset or meta.data_page_offset
        data = bytearray(parquet["train"].read_bytes())
        data[start : start + 40] = b"\xff" * 40
        parquet["train"].write_bytes(data)
        train = open_parquet(**parquet, val_fraction=0).train
        assert train.decode(19).shape == (12, 12, 3)
        with pytest.raises(CorruptSample, match=r"train\.parquet row 20: row group 2 cannot be read"):
            train.decode(20)

    def test_a_row_without_an_image(self, parquet, tmp_path) -> None:
        train = write_parquet(tmp_path / "a.parquet", [picture(0), None, picture(2)], [0, 1, 2])
        with pytest.raises(CorruptSample, match="row 1: there is no image"):
            open_parquet(train=train, test=parquet["test"], val_fraction=0).train.decode(1)


class TestImageFolder:
    def test_reads_the_folders(self, folder) -> None:
        splits = open_data(ImageFolderSettings(root=folder, image_size=24, val_fraction=0.25), seed=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 6, 6)
        assert splits.class_names == ("ant", "bee", "cow")
        assert np.bincount(splits.val.targets).tolist() == [2, 2, 2]
        assert splits.train.decode(0).shape[0] == 30
        assert splits.test.locate(3) == str(folder / "test" / "bee" / "1.jpg")

    def test_a_validation_folder_of_its_own(self, folder) -> None:
        (folder / "test").rename(folder / "val")
        (folder / "test" / "bee").mkdir(parents=True)
        (folder / "test" / "bee" / "x.png").write_bytes(picture(0))
        splits = open_data(ImageFolderSettings(root=folder), seed=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 6, 1)
        assert splits.test.targets.tolist() == [1]

    def test_imagenets_layout_is_read_as_it_is(self, folder) -> None:
        """train/ and val/: the second one is the test split, and validation is carved from the first."""
        before = open_data(ImageFolderSettings(root=folder, val_fraction=0.25), seed=0)
        (folder / "test").rename(folder / "val")
        splits = open_data(ImageFolderSettings(root=folder, val_fraction=0.25), seed=0)
        assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 6, 6)
        assert splits.test.locate(3) == str(folder / "val" / "bee" / "1.jpg")
        assert splits.val.locate(0).startswith(str(folder / "train"))
        assert splits.fingerprint == before.fingerprint

    def test_a_test_split_without_labels_is_not_read(self, folder, caplog) -> None:
        (folder / "test").rename(folder / "val")
        (folder / "test").mkdir()
        (folder / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(picture(0, kind="JPEG"))
        splits = open_data(ImageFolderSettings(root=folder), seed=0)
        assert splits.test.locate(0).startswith(str(folder / "val"))
        assert caplog.messages == [f"data.root: {folder}/test has no class folders in it and is not read"]

    @pytest.mark.parametrize(("gone", "named"), [("train", "train"), ("test", "test")])
    def test_missing_folders(self, folder, gone, named) -> None:
        shutil.rmtree(folder / gone)
        with pytest.raises(
            UserError, match=rf"data\.root: there is no folder {named}/ with one folder for each"
        ):
            open_data(ImageFolderSettings(root=folder), seed=0)

    def test_missing_root(self, tmp_path) -> None:
        with pytest.raises(UserError, match=r"data\.root: there is no folder .*/gone; expected one"):
            open_data(ImageFolderSettings(root=tmp_path / "gone"), seed=0)

    def test_a_class_that_training_has_not(self, folder) -> None:
        (folder / "test" / "dodo").mkdir()
        with pytest.raises(UserError, match="has the class 'dodo', which train/ has not"):
            open_data(ImageFolderSettings(root=folder), seed=0)

    def test_no_images(self, tmp_path) -> None:
        for split in ("train", "test"):
            (tmp_path / split / "ant").mkdir(parents=True)
        with pytest.raises(UserError, match=r"data\.train: there are no samples"):
            open_data(ImageFolderSettings(root=tmp_path), seed=0)

    def test_a_file_that_vanishes_is_a_corrupt_sample(self, folder) -> None:
        train = open_data(ImageFolderSettings(root=folder, val_fraction=0), seed=0).train
        (folder / "train" / "ant" / "0.jpg").unlink()
        with pytest.raises(CorruptSample, match=r"ant/0\.jpg: No such file"):
            train.decode(0)


def test_size_must_be_given_for_large_images(parquet, tmp_path) -> None:
    train = write_parquet(tmp_path / "a.parquet", [picture(0, size=(40, 30))] * 3, [0, 1, 2])
    with pytest.raises(UserError, match=r"data\.image_size: not set, and .* is 40 x 30 pixels"):
        open_parquet(train=train, test=parquet["test"], val_fraction=0)


def test_fingerprint_tells_data_apart(parquet, tmp_path) -> None:
    plain = open_parquet(**parquet).fingerprint
    assert plain == open_parquet(**parquet).fingerprint
    assert plain != open_parquet(**parquet, val_fraction=0.2).fingerprint
    assert plain != open_parquet(**parquet, image_size=10).fingerprint
    images, labels = [picture(i) for i in range(60)], [i % 3 for i in range(60)]
    relabelled = write_parquet(tmp_path / "b.parquet", images, [*labels[:57], 1, 0, 2])
    assert plain != open_parquet(train=relabelled, test=parquet["test"]).fingerprint
    repainted = write_parquet(tmp_path / "c.parquet", [picture(i + 1) for i in range(60)], labels)
    assert plain != open_parquet(train=repainted, test=parquet["test"]).fingerprint


def test_no_ray_is_imported() -> None:
    code = (
        "import sys, raytrain_speedup.data; "
        "sys.exit(', '.join({'ray', 'mlflow', 'optuna'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
