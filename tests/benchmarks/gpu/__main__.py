"""Everything that needs a GPU, in one command; restartable, without Ray, MLflow, Optuna or a network.

    python -m tests.benchmarks.gpu [--parts cifar10,plain] [--out FOLDER] [--minutes M] [--tiny]

`FOLDER/rows.jsonl` gets a line as soon as a row is measured, and `FOLDER/tables.md` is written anew after every
part; rows that are in the folder already are not measured again. The minutes are divided among the parts by
their shares, and what one part leaves over is the next ones'. SPEEDUP_DATA is the folder of
cifar10-{train,test}.parquet and imagenet-sample.parquet. `--tiny` tries every part on a CPU with made-up images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tests.benchmarks.gpu import cifar10, crop_kernels, decode, dfkd, plain, reuse, stages
from tests.benchmarks.gpu.rows import Kit, Rows
from tests.benchmarks.side_by_side import data_folder, provenance

PARTS = {
    "cifar10": cifar10,
    "plain": plain,
    "stages": stages,
    "crop": crop_kernels,
    "decode": decode,
    "dfkd": dfkd,
    "reuse": reuse,
}
"""By importance."""

SHARES = {
    "cifar10": 0.6,
    "plain": 0.06,
    "stages": 0.2,
    "crop": 0.04,
    "decode": 0.2,
    "dfkd": 0.1,
    "reuse": 0.5,
}
"""Of the minutes, where all parts are asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="of reuse; several processes may share them"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no row is begun")
    parser.add_argument(
        "--tiny", action="store_true", help="try it: seconds, on a CPU; the numbers mean nothing"
    )
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() and not asked.tiny else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        data = _made_up(Path(scratch)) if asked.tiny else data_folder()
        kit = Kit(device, asked.tiny, data, Path(scratch), asked.out, tuple(asked.seeds))
        run_parts(parts, kit, asked.out, 60 * asked.minutes)


def run_parts(parts: list[str], kit: Kit, out: Path, seconds: float) -> None:
    """One part after the other; one that fails leaves the others their time."""
    begun, passed, whole = time.monotonic(), 0.0, sum(SHARES[part] for part in parts)
    name = torch.cuda.get_device_name() if kit.device.type == "cuda" else "CPU, tiny" if kit.tiny else "CPU"
    where = {"device": name, "torch": torch.__version__, "commit": _commit()}
    print(f"{name}, torch {torch.__version__}, commit {where['commit']}", file=sys.stderr, flush=True)
    tables: dict[str, str] = {}
    for part in parts:
        passed += SHARES[part] / whole
        rows = Rows(out / "rows.jsonl", part, begun + passed * seconds, where)
        try:
            tables[part] = PARTS[part].measure(rows, kit)
        except Exception:  # the machine is lent: the other parts are wanted all the same
            traceback.print_exc()
            tables[part] = "failed; see the output"
        _write(out / "tables.md", tables, where)
    print((out / "tables.md").read_text(encoding="utf-8"), flush=True)


def _write(file: Path, tables: Mapping[str, str], where: Mapping[str, str]) -> None:
    sections = [f"## {part}\n\n{text}\n" for part, text in tables.items()]
    line = f"{where['device']}, torch {where['torch']}, commit {where['commit']}"
    file.write_text("\n".join([*sections, line, ""]), encoding="utf-8")


def _commit() -> str:
    """Of the tree that is measured; SPEEDUP_COMMIT says it where a tree comes without its history."""
    return os.environ.get("SPEEDUP_COMMIT") or provenance([]).partition(" at ")[2].partition(",")[0]


def _made_up(folder: Path) -> Path:
    """Parquet files like those of CIFAR-10 and of ImageNet, of noise."""
    for name, number in (("train", 96), ("test", 32)):
        table = pa.table({"image": _noise(number, (32, 32), "PNG"), "label": np.arange(number) % 10})
        pq.write_table(table, folder / f"cifar10-{name}.parquet")
    table = pa.table({"image": _noise(12, (48, 60), "JPEG"), "wnid": [f"n{i % 3}" for i in range(12)]})
    pq.write_table(table, folder / "imagenet-sample.parquet")
    return folder


def _noise(number: int, shape: tuple[int, int], kind: str) -> list[bytes]:
    """Image files."""
    files = []
    for pixels in np.random.default_rng(0).integers(0, 256, (number, *shape, 3), dtype=np.uint8):
        file = BytesIO()
        Image.fromarray(pixels).save(file, kind)
        files.append(file.getvalue())
    return files


if __name__ == "__main__":
    main()
