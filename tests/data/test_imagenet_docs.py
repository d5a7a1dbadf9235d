"""The commands of docs/data.md, from ImageNet's tar files as downloaded to the first steps, on made-up ones."""

from __future__ import annotations

import gzip
import io
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from tiny_data import picture
from tiny_shards import pack
from torchvision.datasets import imagenet

from raytrain_speedup import cli
from raytrain_speedup.config import load_experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.data.index.devkit import devkit_labels
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.experiment_file import recipes
from raytrain_speedup.settings import UserError

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
WNIDS = ("n01440764", "n01443537", "n00007846", "n02084071")
"""In the order of the kit's numbers, which is not that of the names."""
PER_CLASS = 20
DOUBLE = 7
"""The image of a class that is the one before it once more."""
TINY = [
    *(
        "scaling.workers=1",
        "scaling.gpus_per_worker=0",
        "scaling.cpus_per_worker=1",
        "tracking.uri=json:runs",
    ),
    *(
        "data.image_size=32",
        "data.num_workers=0",
        "data.randaugment=0",
        "train.batch_size=16",
        "train.epochs=1",
    ),
    *(
        "train.precision=fp32",
        "train.threads=1",
        "train.compile=false",
        "model.name=resnet8",
        "model.drop_path=0",
    ),
]
"""What a test changes in a recipe: the machine it is for, and the size of everything."""


def blocks() -> list[list[str]]:
    """The commands of each block that docs/data.md says are run or read here."""
    found = re.findall(
        r"<!-- r\w+ by tests/data/test_imagenet_docs.py -->\n```sh\n(.*?)```", DOCS.read_text(), re.DOTALL
    )
    return [block.replace("\\\n", "").splitlines() for block in found]


ILSVRC, FALL, WINTER, UNPACKED = blocks()


def jpegs(wnid: str) -> dict[str, bytes]:
    """Images of a class; one of them twice, and in one class one that is none."""
    files = {}
    for number in range(PER_CLASS):
        seen = PER_CLASS * WNIDS.index(wnid) + number - (number == DOUBLE)
        size = (24 + seen % 7, 20 + seen // 7)  # no two are the same
        files[f"{wnid}_{number}.JPEG"] = picture(seen, size=size, kind="JPEG")
    if wnid == WNIDS[1]:
        files[f"{wnid}_11.JPEG"] = b"no image"
    return files


def class_tars(folder: Path, under: str = "") -> dict[str, bytes]:
    return {f"{under}{wnid}.tar": pack(folder / "inner.tar", jpegs(wnid)).read_bytes() for wnid in WNIDS}


def development_kit(path: Path, numbers: list[int]) -> Path:
    """As ILSVRC2012's: a class that has no images of its own among them, whose number is beyond the others'."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    kinds += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    rows = [
        (k + 1, wnid, f"thing {k}", "a thing", 0, np.array([]), 0, PER_CLASS) for k, wnid in enumerate(WNIDS)
    ]
    rows.append((len(WNIDS) + 1, "n00001740", "entity", "what is", 2, np.array([1, 2]), 1, 0))
    synsets = np.empty((len(rows), 1), dtype=kinds)
    for number, row in enumerate(rows):
        synsets[number, 0] = row
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    files = {
        "meta.mat": meta.getvalue(),
        "ILSVRC2012_validation_ground_truth.txt": "".join(f"{number}\n" for number in numbers).encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def commands(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "speedup":
            tiny = TINY if arguments[0] == "train" else []
            monkeypatch.setattr(sys, "argv", [program, *arguments, *tiny])
            assert cli._run_command() == 0, line
        else:
            subprocess.run([program, *arguments], check=True)


def test_imagenet_1k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "ILSVRC2012_img_train.tar", class_tars(tmp_path))
    numbers = [3, 1, 4, 2, 2, 1, 4, 3]
    kit = development_kit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", numbers)
    images = {
        f"ILSVRC2012_val_{k + 1:08d}.JPEG": picture(k, (31, 40 + k), "JPEG") for k in range(len(numbers))
    }
    pack(tmp_path / "ILSVRC2012_img_val.tar", dict(reversed(images.items())))
    commands(ILSVRC, monkeypatch)
    printed = " ".join(capsys.readouterr().out.split())
    assert "data/imagenet/train.index: 80 samples of 4 classes in 1 files" in printed
    assert "data/imagenet/val.index: 8 samples of 4 classes in 1 files" in printed
    assert "1 of 80 samples are left out" in printed and "accuracy" in printed
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)
    imagenet.parse_devkit_archive(tmp_path)
    assert list(devkit_labels(kit, "").values()) == imagenet.load_meta_file(tmp_path)[1], (
        "as torchvision reads it"
    )
    data = open_data(load_experiment("imagenet1k-resnet50").data, seed=0)
    found = {data.class_names[target]: data.test.encoded(k) for k, target in enumerate(data.test.targets)}
    assert found[WNIDS[2]] == images["ILSVRC2012_val_00000001.JPEG"]


@pytest.mark.parametrize("release", ["fall", "winter"])
def test_imagenet_22k(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if release == "fall":
        pack(tmp_path / "fall11_whole.tar", class_tars(tmp_path))
    else:
        plain = pack(tmp_path / "plain.tar", class_tars(tmp_path, "winter21_whole/"))
        packed = tmp_path / "winter21_whole.tar.gz"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        with pytest.raises(UserError, match=r"^data index: winter21_whole\.tar\.gz in .*gunzip[^\n]*$"):
            make_index(packed, tmp_path / "index")
    commands(FALL if release == "fall" else WINTER, monkeypatch)
    printed = " ".join(capsys.readouterr().out.split())
    assert "data/imagenet22k/train.index: 80 samples of 4 classes in 1 files" in printed
    assert "5 of 80 samples are left out" in printed and "accuracy" in printed
    data = open_data(load_experiment("imagenet22k-swin_b").data, seed=0)
    assert (len(data.train), len(data.val)) == (75 - len(data.test), 0) and len(data.test) == 1


def test_a_folder_of_class_tars_is_of_these_classes(tmp_path: Path) -> None:
    """Where a name is a WordNet ID alone; of other tar files it says nothing."""
    folder = tmp_path / "winter21_whole"
    folder.mkdir()
    for name, content in class_tars(tmp_path).items():
        (folder / name).write_bytes(content)
    index = make_index(folder, tmp_path / "index", processes=1)
    assert (
        index.class_names == tuple(sorted(WNIDS)) and np.bincount(index.targets).tolist() == [PER_CLASS] * 4
    )
    (folder / f"{WNIDS[0]}.tar").rename(folder / "shard-0.tar")
    with pytest.raises(UserError, match=r"shard-0\.tar: n01440764_0\.JPEG is in no folder"):
        make_index(folder, tmp_path / "index", processes=1)


@pytest.mark.parametrize("broken", ["no.tar.gz", "empty.tar.gz", "number.tar.gz"])
def test_what_is_no_development_kit_is_one_line(broken: str, tmp_path: Path) -> None:
    if broken.startswith("empty"):
        pack(tmp_path / broken, {})
    elif broken.startswith("number"):
        development_kit(tmp_path / broken, [1, 99])
    with pytest.raises(
        UserError, match=rf"^data index: --labels: .*{broken} .*; expected lines of NAME CLASS, or [^\n]*$"
    ):
        make_index(tmp_path, tmp_path / "index", labels=tmp_path / broken)


@pytest.mark.parametrize("line", UNPACKED)
def test_another_source_is_given_the_recipes_other_keys(line: str) -> None:
    """They are all of the section but where the images lie."""
    name, *overrides = shlex.split(line)[2:]
    recipe, changed = (load_experiment(name, keys).data.model_dump() for keys in ({}, overrides))
    own = {"source", "root", "train", "test", "val", "window", "cache", "cache_gb"}
    assert {key: value for key, value in recipe.items() if key not in own} == {
        key: value for key, value in changed.items() if key not in own
    }
    assert changed["source"] == "imagefolder" and recipe["source"] == "index"


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("imagenet")])
def test_recipes_read_what_the_docs_make(name: str) -> None:
    made = {
        Path(path)
        for block in (ILSVRC, FALL, WINTER)
        for line in block
        for path in re.findall(r"-o (\S+)", line)
    }
    data = load_experiment(name).data
    assert data.source == "index" and {data.train, data.test or data.train} <= made
    pretraining = name.startswith("imagenet22k") and "finetune" not in name
    assert data.test_fraction == (0.01 if pretraining else None) and data.val_fraction == 0
