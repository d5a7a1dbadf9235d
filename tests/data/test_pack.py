"""What is packed is what was there, with its classes, in tar files that can be indexed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_shards import CLASSES, FILES, loose, nested
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.packing import pack_images
from raytrain_speedup.data.index.reading import ShardReader
from raytrain_speedup.settings import UserError


def packed(folder: Path, index: Path) -> list[tuple[str, bytes]]:
    """(class, file) of every sample."""
    found = make_index(folder, index)
    reader = ShardReader(found)
    return [(found.class_names[found.targets[row]], reader.read(row)) for row in range(len(found.rows))]


EXPECTED = [(name[:3], content) for name, content in FILES.items()]


def test_tar_files_sorted_by_class_are_shuffled(tmp_path: Path) -> None:
    source = nested(tmp_path / "all.tar")
    assert pack_images(str(source), tmp_path / "out", per_shard=7, processes=1) == 18
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "000000000.tar",
        "000000007.tar",
        "000000014.tar",
    ]
    found = packed(tmp_path / "out", tmp_path / "index")
    assert sorted(found) == sorted(EXPECTED) and found != EXPECTED
    assert {label for label, _ in found[:7]} == set(CLASSES), "any stretch holds all classes"
    pack_images(str(source), tmp_path / "again", per_shard=7, processes=2)
    assert packed(tmp_path / "again", tmp_path / "index") == found, "the same order for a seed"
    pack_images(str(source), tmp_path / "other", per_shard=7, seed=1)
    assert packed(tmp_path / "other", tmp_path / "index") != found


def test_an_index_leaves_out_its_quarantine(tmp_path: Path) -> None:
    make_index(loose(tmp_path / "loose"), tmp_path / "index")
    (tmp_path / "index" / "quarantine.csv").write_text("row\n0\n17\n")
    assert pack_images(str(tmp_path / "index"), tmp_path / "out") == 16
    assert sorted(packed(tmp_path / "out", tmp_path / "other.index")) == sorted(EXPECTED[1:17])


def test_the_command_takes_hugging_faces_parquet_files(tmp_path: Path) -> None:
    """Dictionary pages, compressed: what has no bytes of its own there."""
    images = [{"bytes": content, "path": name} for name, content in FILES.items()]
    images[4] = {"bytes": b"no image", "path": "x"}
    labels = [CLASSES.index(name[:3]) for name in FILES]
    (tmp_path / "in").mkdir()
    for part, rows in enumerate((slice(0, 10), slice(10, 18))):
        table = pa.table({"image": images[rows], "y": labels[rows]})
        pq.write_table(table, tmp_path / "in" / f"{part}.parquet", compression="zstd", row_group_size=4)
    command = ["data", "pack", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--label-column=y"]
    done = CliRunner().invoke(app, [*command, "--processes=1", "--per-shard=5"])
    assert done.exit_code == 0 and "out: 17 images" in done.output.replace("\n", "")
    found = packed(tmp_path / "out", tmp_path / "index")
    assert found == [(str(labels[row]), content) for row, (_, content) in enumerate(EXPECTED) if row != 4]
    with pytest.raises(UserError, match=r"data pack: .*out is there already; expected a new folder"):
        pack_images(str(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(UserError, match=r"--image-column: .*0\.parquet has no column 'img'"):
        pack_images(str(tmp_path / "in"), tmp_path / "new", image_column="img")
