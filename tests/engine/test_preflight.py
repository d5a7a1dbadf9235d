"""Preflight: what would stop a run stops it here, and stages that wait for images are seen."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engine_runs import VIT, tiny
from PIL import Image
from rich.console import Console

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.engine.preflight import Preflight, StageCheck, preflight
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError
from raytrain_speedup.terminal import preflight_table

CURRICULUM: dict[str, Any] = {
    "data.image_size": 16,
    "curriculum.method": "efficienttrain++",
    "curriculum.family": "swin",
}
EIGHT_PIXELS = Stage(ends_at=0.2, size=8, cost=0.25, replay=2)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def check(device: float = 1000, loader: float = 4000, **fields: Any) -> StageCheck:
    """1,000 samples at 8 pixels."""
    given = {"stage": EIGHT_PIXELS, "magnitudes": (0, 1), "size": 8, "batch": 64, "samples": 1000.0}
    return StageCheck(
        **(given | {"workers": 2, "memory": 1 << 30} | fields), device_rate=device, loader_rate=loader
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """48 JPEGs of 1,200 x 900 pixels, decoded in this process for a tiny model at 16 pixels."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (900, 1200, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    path = tmp_path_factory.mktemp("photographs") / "train.parquet"
    table = {"image": [stream.getvalue()] * 48, "label": [i % 3 for i in range(48)]}
    pq.write_table(pa.table(table), path)
    return tiny(
        VIT
        | CURRICULUM
        | {
            "data.source": "parquet",
            "data.train": str(path),
            "data.test": str(path),
            "data.val_fraction": 0.3,
        }
        | {"data.loader": "workers", "data.num_workers": 0, "data.augment": "random-resized-crop"}
        | {"train.batch_size": 4}
    )


def test_stages_that_cost_the_same_are_one_row():
    """Ten stages at 8, 12 and 16 pixels; of each the hardest augmentation is measured."""
    told: list[StageCheck] = []
    found = preflight(tiny(VIT | CURRICULUM), steps=1, on_check=told.append)
    assert told == list(found.checks)
    assert [c.size for c in found.checks] == [8, 12, 16]
    assert [c.magnitudes for c in found.checks] == [(0, 1), (2, 5), (6, 9)]
    assert [c.stage.ends_at for c in found.checks] == pytest.approx([0.2, 0.6, 1.0])
    assert sum(c.samples for c in found.checks) == pytest.approx(3 * 230 * (0.2 / 0.25 + 0.4 / 0.5625 + 0.4))
    assert 0 < found.seconds < 60
    assert all(c.workers is None and not c.decode_bound for c in found.checks)


def test_a_worker_gets_its_share_and_a_replayed_batch_is_no_larger():
    keys = VIT | CURRICULUM | {"curriculum.max_replay": 4, "curriculum.max_batch_factor": 2}
    alone = preflight(tiny(keys), steps=1).checks
    assert [(c.batch, c.stage.replay, c.stage.batch_factor) for c in alone] == [
        (128, 4, 2),
        (64, 1, 1),
        (64, 1, 1),
    ]
    shared = preflight(tiny(keys | {"scaling.workers": 2}), steps=1).checks
    assert [c.batch for c in shared] == [64, 32, 32]
    assert [c.samples for c in shared] == pytest.approx([c.samples / 2 for c in alone])


def test_stages_that_wait_for_images_are_seen(photographs: Experiment):
    start = time.perf_counter()
    found = preflight(photographs, steps=2)
    assert time.perf_counter() - start < 20
    assert all(c.decode_bound for c in found.checks)
    assert all(
        c.remedy.startswith(("data.num_workers=", f"{c.remedy.split()[0]} processes")) for c in found.checks
    )
    text = drawn(found, photographs, 80)
    assert "until 20% the device waits for images" in text


def test_a_loader_with_processes_is_timed_in_whole_rounds(photographs: Experiment):
    """What they have decoded ahead does not make them look faster than they are."""
    few = photographs.with_overrides({"data.num_workers": 1, "curriculum.method": "none"})
    (ahead,) = preflight(few, steps=4).checks
    (at_once,) = preflight(photographs.with_overrides({"curriculum.method": "none"}), steps=4).checks
    assert ahead.loader_rate < 2 * at_once.loader_rate


def test_who_decides_the_time():
    """Processes work beside the device; without them decoding and training take turns."""
    assert check(1000, 500).seconds == pytest.approx(2)
    assert check(1000, 4000).seconds == pytest.approx(1)
    assert check(1000, 500, workers=0).seconds == pytest.approx(3)
    assert check(1000, 500, workers=None).seconds == pytest.approx(3)


def test_the_estimate_grows_with_the_samples_and_falls_with_the_rates():
    seconds = [
        Preflight([check(device, loader, samples=samples)]).seconds
        for device, loader, samples in [
            (2000, 2000, 1e3),
            (1000, 2000, 1e3),
            (1000, 500, 1e3),
            (1000, 500, 2e3),
        ]
    ]
    assert seconds == sorted(seconds) and len(set(seconds)) == 4
    full = check(500, 4000, stage=Stage(1.0, size=16), size=16, samples=3000.0)
    assert Preflight([check(2000, 4000), full]).speedup == pytest.approx(8 / 6.5)


def test_the_remedy_is_in_proportion(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert check(1000, 950).remedy == ""
    assert check(1000, 400).remedy == "data.num_workers=5"
    assert check(1000, 100).remedy == "20 processes that decode (data.num_workers; 8 cores here)"
    assert check(1000, 100, may_decode=True).remedy == (
        "20 processes that decode (data.num_workers; 8 cores here), or data.decode=device"
    )
    assert check(1000, 400, may_decode=True).remedy == "data.num_workers=5"
    assert check(1000, 400, workers=0).remedy == "data.num_workers=3"
    assert check(1000, 400, workers=None).remedy == ""


def drawn(found: Preflight, experiment: Experiment, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(preflight_table(found, experiment))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_a_line_per_stage(width: int):
    large = check(
        123_456, 98_765, stage=Stage(1.0, size=224), size=224, batch=16_384, memory=123 << 30, samples=4e9
    )
    text = drawn(Preflight([check(1000, 100), replace(large, magnitudes=(None, None))]), tiny(), width)
    rows = [line.split() for line in text.splitlines() if " GiB " in line]
    assert [row[0] for row in rows] == ["20%", "100%"]
    assert rows[0][1:7] == ["8", "64", "0-1", "2", "1,000", "100"]
    header = next(line for line in text.splitlines() if "replay" in line)
    assert header.split() == [
        "until",
        "size",
        "batch",
        "m",
        "replay",
        "device/s",
        "loader/s",
        "memory",
        "time",
    ]
    assert "…" not in text


def test_a_model_that_cannot_take_a_size_is_refused_in_seconds():
    start = time.perf_counter()
    keys = CURRICULUM | {"model.name": "timm/mixer_s16_224", "data.image_size": 64}
    with pytest.raises(
        UserError, match=r"model.name: timm/mixer_s16_224 cannot change its image size from 64"
    ):
        preflight(tiny(keys))
    assert time.perf_counter() - start < 10


def test_a_task_that_the_data_are_not_for_is_refused():
    with pytest.raises(UserError, match=r"task\.kind: 'segmentation' needs images with masks"):
        preflight(tiny({"task.kind": "segmentation"}))


def test_what_has_no_stages_is_refused_before_a_teacher_is_trained():
    with pytest.raises(UserError, match="distillation: a preflight tries the stages of a curriculum"):
        preflight(load_experiment("digits-dfkd"))


def test_a_stage_whose_batch_cannot_be_held_is_reported_in_words():
    """In a process that may have little memory: the batch of the second stage does not fit, the first's does."""
    code = (
        "import resource, sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from engine_runs import tiny\n"
        "from raytrain_speedup.engine.preflight import preflight\n"
        "from raytrain_speedup.settings import UserError\n"
        "keys = {'model.name': 'wrn16_2', 'data.image_size': 64, 'train.batch_size': 230}\n"
        "preflight(tiny(keys | {'train.batch_size': 2}), steps=1)\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)\n"
        "try:\n"
        "    preflight(tiny(keys), steps=1)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("train.batch_size: 230 samples of 64 x 64 pixels at a time"), done.stderr


@pytest.mark.parametrize("command", ["preflight", "train"])
def test_the_command_line_refuses_by_name(command: str, tmp_path: Path):
    keys = ["curriculum.method=efficienttrain++", "data.image_size=64", "model.name=timm/mixer_s16_224"]
    done = subprocess.run(
        [sys.executable, "-m", "raytrain_speedup.cli", command, "digits", *keys],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "model.name: timm/mixer_s16_224 cannot change its image size from 64 to" in done.stderr
    assert "Traceback" not in done.stderr
