"""A training on objects in S3 reads what its plans show, and goes on with other workers where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import CPU, Diary, WorkerDiary, run
from loopback_s3 import LoopbackS3
from PIL import Image
from ranks import on_two_ranks

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data.index.indexing import make_index
from raytrain_speedup.data.index.packing import pack_images
from raytrain_speedup.data.index.reading import GAP
from raytrain_speedup.data.index.shards import Index, open_index
from raytrain_speedup.data.worker_loader import WorkerLoader
from raytrain_speedup.engine.loop import Stopped

SAMPLES, EPOCHS, BATCH = 60, 4, 8
PRUNED = {
    "pruning.method": "random",
    "pruning.saving": 0.4,
    "pruning.prune_from": 0,
    "pruning.anneal_from": 1.0,
}
Shown = list[tuple[int, list[int]]]
"""(epoch, samples) of each step."""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackS3]:
    with LoopbackS3().running() as server:
        yield server


@pytest.fixture(scope="module")
def index(s3: LoopbackS3, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("data")
    index = make_index(s3.put_folder(of_noise(folder), "shards"), folder / "train.index", processes=1)
    assert index.rows["length"].min() > GAP
    return index


def of_noise(folder: Path) -> Path:
    """Sixty images of noise, each larger than the gap that is read over: a folder of tar files of them. The test
    index is on the disk."""
    random = np.random.default_rng(0)
    for number in range(SAMPLES):
        (folder / "loose" / f"n{number % 2}").mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        image.save(folder / "loose" / f"n{number % 2}" / f"{number}.png")
    make_index(folder / "loose", folder / "test.index")
    pack_images(str(folder / "loose"), folder / "shards", per_shard=20, processes=1)
    return folder / "shards"


def experiment(index: Index, **keys: Any) -> Experiment:
    known = {
        "data.source": "index",
        "data.train": index.folder,
        "data.test": index.folder.with_name("test.index"),
        "data.image_size": 8,
        "data.val_fraction": 0,
        "data.augment": "none",
        "data.loader": "workers",
        "data.num_workers": 1,
        "model.name": "timm/vit_tiny_patch16_224",
        "model.options": {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2},
        "train.channels_last": False,
        "train.epochs": EPOCHS,
        "train.batch_size": BATCH,
        "train.threads": 1,
        "train.eval_every": 0,
        "train.checkpoint_every": 0,
    }
    return load_experiment("digits", known | keys)


def record(into: Shown) -> Any:
    """`WorkerLoader.train_batches` that notes what it shows but for the warm-up."""
    original = WorkerLoader.train_batches

    def train_batches(self: WorkerLoader, steps: Any, *, epoch: int) -> Any:
        for step, batch in zip(steps, original(self, steps, epoch=epoch), strict=True):
            if step.number >= 0:
                into.append((epoch, batch["index"].tolist()))
            yield batch

    return train_batches


def fetches(s3: LoopbackS3, index: Index) -> np.ndarray:
    """(N,) how often each sample was sent."""
    counts = np.zeros(len(index.rows), dtype=int)
    for path, start, stop in s3.spans:
        shard = next(number for number in range(len(index.shards)) if path.endswith(f"/{index.name(number)}"))
        offset, length = index.rows["offset"].astype(int), index.rows["length"].astype(int)
        counts += (index.rows["shard"] == shard) & (start <= offset) & (offset + length <= stop)
    return counts


def test_what_is_pruned_is_not_sent(
    s3: LoopbackS3, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its plans a run reads some samples to begin with, the same ones with pruning and without."""
    beside, sent, read = {}, {}, {}
    for method in ({"pruning.method": "none"}, PRUNED):
        name, shown = method["pruning.method"], []
        monkeypatch.setattr(WorkerLoader, "train_batches", record(shown))
        s3.clear()
        costs = run(experiment(index, **method), Diary(tmp_path / name), device=CPU)
        assert of_what_was_shown(costs["bytes_read"], [i for _, samples in shown for i in samples], index)
        plans = np.bincount([i for _, samples in shown for i in samples], minlength=SAMPLES)
        beside[name], read[name] = fetches(s3, index) - plans, fetches(s3, index)
        sent[name] = s3.bytes_sent
        assert costs["bytes_read"] <= sent[name] - (beside[name] @ index.rows["length"].astype(int))
        monkeypatch.undo()
        between = sent[name] - int((read[name] * index.rows["length"].astype(int)).sum())
        assert 0 <= between < 1024 * read[name].sum(), "headers between neighbours, and nothing else"
    assert np.array_equal(beside["none"], beside["random"]) and beside["none"].min() >= 0
    shown_of = {name: (read[name] - beside[name]).sum() for name in read}
    assert shown_of["none"] == SAMPLES * EPOCHS
    assert shown_of["random"] == pytest.approx(0.6 * SAMPLES * EPOCHS, abs=EPOCHS)


def of_what_was_shown(bytes_read: float | None, shown: list[int], index: Index) -> bool:
    """Whether so many bytes are those of the samples shown, with some headers between neighbours."""
    between = (bytes_read or 0) - int(index.rows["length"].astype(int)[shown].sum())
    return 0 <= between < 1024 * len(shown)


def _on_a_rank(
    rank: int, chosen: Experiment, folder: Path, environment: dict[str, str]
) -> tuple[Shown, float | None]:
    os.environ.update(environment)
    shown: Shown = []
    WorkerLoader.train_batches = record(shown)  # type: ignore[method-assign]
    return shown, run(chosen, WorkerDiary(folder, rank), device=CPU)["bytes_read"]


def test_it_goes_on_with_two_workers_in_the_middle_of_an_epoch(
    s3: LoopbackS3, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every epoch shows what it shows of old, each sample once; in the order of a window, at that."""
    keys = PRUNED | {"data.window": 16, "data.num_workers": 0, "train.checkpoint_every": 1}
    whole: Shown = []
    monkeypatch.setattr(WorkerLoader, "train_batches", record(whole))
    run(experiment(index, **keys), Diary(tmp_path / "whole"), device=CPU)
    monkeypatch.undo()
    first: Shown = []
    monkeypatch.setattr(WorkerLoader, "train_batches", record(first))
    with pytest.raises(Stopped, match=r"stopped in epoch 2 after step 3 of \d"):
        steps_of_first = sum(epoch == 0 for epoch, _ in whole)
        run(experiment(index, **keys), Diary(tmp_path / "run", stop_after=steps_of_first + 3), device=CPU)
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    ranks = on_two_ranks(_on_a_rank, experiment(index, **keys), tmp_path / "run", environment)
    rest = [shown for shown, _ in ranks]
    everything = [i for part in (first, *rest) for _, samples in part for i in samples]
    assert all(of_what_was_shown(bytes_read, everything, index) for _, bytes_read in ranks)
    assert len(rest[0]) == len(rest[1]) > 0

    def by_epoch(*parts: Shown) -> list[list[int]]:
        return [
            sorted(i for part in parts for e, samples in part if e == epoch for i in samples)
            for epoch in range(EPOCHS)
        ]

    assert by_epoch(first, *rest) == by_epoch(whole)
    assert all(len(set(shown)) == len(shown) for shown in by_epoch(whole))
    shown_first = [i // 2 for epoch, samples in whole if epoch == 0 for i in samples]
    places = {stretch: [p for p, s in enumerate(shown_first) if s == stretch] for stretch in set(shown_first)}
    # Each of two neighbours is moved by up to a window, and so is whatever comes between them.
    assert max(max(p) - min(p) for p in places.values()) <= 2 * 16 + 1, "neighbours are shown near each other"
    assert open_index(index.folder).digest == index.digest
